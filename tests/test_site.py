"""The shared records: frozen, and plain JSON types when asked for."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from types import MappingProxyType

import pytest

from attnpass.site import FORMS, AttentionSite, Decline

NO = Decline("MASK_ARBITRARY", "a.attn", "m.py:3", "use a boolean mask", "softmax")
SITE = AttentionSite(
    *("a.attn", "self", 4, 2, 8, 8, 5, "s1", 0.5),
    mask=frozenset({"padding", "causal"}),
    weights=((32, 32), (32,)),
    grid=(2, 3),
    legal=MappingProxyType({"softmax": None, "hydra": NO}),
)


def test_a_decline_is_one_line():
    assert str(NO) == "MASK_ARBITRARY: use a boolean mask"
    assert str(Decline("DROPOUT")) == "DROPOUT"
    assert Decline(**NO.as_dict()) == NO
    assert json.loads(json.dumps(NO.as_dict()))["source"] == "m.py:3"


def test_a_site_is_plain_json():
    out = json.loads(json.dumps(SITE.as_dict()))
    assert out["mask"] == ["causal", "padding"]
    assert out["weights"] == [[32, 32], [32]] and out["grid"] == [2, 3]
    assert out["legal"] == {"softmax": None, "hydra": NO.as_dict()}
    assert out.keys() == AttentionSite.__dataclass_fields__.keys()


def test_fits_is_what_a_plan_file_holds():
    fits = {"kind": "self", "heads": 4, "kv_heads": 2, "head_dim": 8, "weights": [[32, 32], [32]]}
    assert SITE.fits() == json.loads(json.dumps(SITE.fits())) == fits


def test_the_records_are_frozen():
    for record, name in ((NO, "code"), (SITE, "name")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, "other")
    with pytest.raises(TypeError):
        SITE.legal["softmax"] = NO


def test_softmax_is_the_first_form():
    assert FORMS[0] == "softmax" and len(set(FORMS)) == len(FORMS)
