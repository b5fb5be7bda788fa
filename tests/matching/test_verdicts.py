"""Every anchor gets one verdict: a site, or one Decline with code, place and hint."""

import re

import house
import pytest
import torch
from models import (
    DECOYS,
    DISTINCT,
    EQUAL,
    POSITIVES,
    Attention,
)
from models.cases import located
from tracing import proven, shapes, traced

import attnpass
from attnpass.matching import legality
from attnpass.matching.verdicts import match


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


Q, K, V = shapes()


def plain(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def test_every_softmax_gets_one_verdict():
    def three(q, k, v):
        return plain(q, k, v) + (q @ k.mT).softmax(-2) @ v + plain(q * 2, k, v)

    found = proven(three, Q, K, V)
    assert [r.site.name for r in found.regions] == ["root", "root#2"]
    assert [d.code for d in found.declined] == ["AXIS_NOT_TOKEN"]


def test_a_graph_without_softmax_has_no_verdicts():
    found = match(traced(lambda q: q.relu(), Q).graph, set())
    assert (found.regions, found.declined) == ([], [])


def test_a_declined_softmax_takes_no_number():
    """The name of a site does not depend on look-alikes before it."""
    found = proven(lambda q, k, v: (q @ k.mT).softmax(1) @ v + plain(q, k, v), Q, K, V)
    assert [r.site.name for r in found.regions] == ["root"]


def test_an_operator_that_cannot_be_opened_names_the_cure():
    """The inference kernel of nn.MultiheadAttention, called directly."""
    x = torch.randn(2, 5, 8)
    w, b = torch.randn(24, 8), torch.randn(24)
    o, c = torch.randn(8, 8), torch.randn(8)

    def fast(x, w, b, o, c):
        return torch._native_multi_head_attention(x, x, x, 8, 2, w, b, o, c, need_weights=False)[0]

    (decline,) = match(traced(fast, x, w, b, o, c).graph, set()).declined
    assert decline.code == "OPAQUE_FASTPATH" and "set_fastpath_enabled" in decline.hint


def test_what_is_allowed_reaches_the_table():
    def returned(q, k, v):
        p = (q @ k.mT).softmax(-1)
        return p @ v, p

    gm = traced(returned, Q, K, V)
    (region,) = match(gm.graph, set()).regions
    assert region.site.legal["sigmoid"].code == "PROBS_ESCAPE"
    (region,) = match(gm.graph, set(), ("other_weights",)).regions
    assert region.site.legal["sigmoid"] is None


@torch.library.custom_op("elsewhere::flash_attn_forward", mutates_args=())
def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).clone()


@flash.register_fake
def _(q, k, v):
    return torch.empty_like(q)


@torch.library.custom_op("elsewhere::rotate", mutates_args=())
def rotate(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@rotate.register_fake
def _(x):
    return torch.empty_like(x)


class Elsewhere(torch.nn.Module):
    """Attention behind an operator of another library, and beside it in torch's."""

    def forward(self, q):
        q = rotate(q)
        return flash(q, q, q) + torch.nn.functional.scaled_dot_product_attention(q, q + 1, q)


def test_attention_operators_of_other_libraries_are_named():
    report = attnpass.find_sites(Elsewhere(), torch.randn(2, 3, 5, 4))
    (declined,) = report.declined
    assert len(report.sites) == 1 and declined.code == "OPAQUE_FASTPATH"
    assert "elsewhere::flash_attn_forward" in declined.hint
