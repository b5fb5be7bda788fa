"""Every anchor gets one verdict: a site, or one Decline with code, place and hint."""

import re

import house
import pytest
from models import (
    DECOYS,
    DISTINCT,
    EQUAL,
    POSITIVES,
    Attention,
)
from models.cases import located

import attnpass
from attnpass.matching import legality


@pytest.mark.parametrize("sizes", [DISTINCT, EQUAL], ids=["distinct", "equal"])
@pytest.mark.parametrize(("case", "code"), DECOYS, ids=lambda x: str(x))
def test_decoy(case, code, sizes):
    report = attnpass.find_sites(case.model(sizes), *case.inputs(sizes))
    assert report.sites == []
    assert [d.code for d in report.declined] == [code]
    (decline,) = report.declined
    assert decline.path == "root"
    assert decline.hint and decline.node
    text = located(decline.source)
    assert "softmax" in text or "scaled_dot_product" in text


@pytest.mark.parametrize("name", ["linear_attention", "sum_normalised"])
def test_no_softmax_map_is_no_site(name):
    import models

    model = Attention(getattr(models, name)).eval()
    (x,) = POSITIVES[0].inputs()
    report = attnpass.find_sites(model, x)
    assert report.sites == []
    assert all(d.code.startswith(("NOT_ATTENTION", "AXIS")) for d in report.declined)


def test_every_code_is_documented():
    page = (house.ROOT / "docs" / "declines.md").read_text()
    codes = set()
    for path in (house.ROOT / "attnpass").rglob("*.py"):
        found = re.findall(r'(?:Refuse|Decline)\(\s*f?"([A-Z_]+(?::[a-z]+)?)', path.read_text())
        codes |= set(found)
    codes |= {code for _, code, *_ in legality.RULES}
    codes = {"UNKNOWN_SCORE_OP" if c.startswith("UNKNOWN") else c for c in codes}
    assert len(codes) >= 15
    assert [c for c in sorted(codes) if f"`{c}" not in page] == []
