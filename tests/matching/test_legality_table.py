"""Which form is legal at which site: the table of the design, row by row."""

from __future__ import annotations

import pytest

from attnpass.matching.legality import Traits, legality
from attnpass.site import FORMS, Decline

AT = Decline("", "blocks.0.attn", "model.py:7", node="softmax_1")
# a self attention that every form can express, its source layer included
BASE = {"previous": True}
P, C = frozenset({"padding"}), frozenset({"causal"})


# row: (traits, allow, code of each declined form); a form that is not named is legal
TABLE = {
    "nothing special": ({}, (), {}),
    "additive bias": ({"bias": True}, (), {"hydra": "BIAS_NOT_SUPPORTED"}),
    "key padding": ({"mask": P}, (), {}),
    "causal": ({"mask": C}, (), {}),
    "causal and padding": ({"mask": P | C}, (), {}),
    "causal, T != S": ({"mask": C, "same_len": False}, (), {"hydra": "MASK_ARBITRARY"}),
    "padding, T != S": ({"mask": P, "same_len": False}, (), {}),
    "window": (
        {"mask": frozenset({"window"})},
        (),
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    "arbitrary": (
        {"mask": frozenset({"arbitrary"})},
        (),
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    "packed, causal": (
        {"mask": C | {"packed"}},
        (),
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    # the softmax node alone is swapped, also for softmax itself
    "soft cap": ({"softcap": True}, (), {"hydra": "SOFTCAP"}),
    "talking heads": (
        {"mixed": True},
        (),
        {"hydra": "TALKING_HEADS", "skipat": "TALKING_HEADS"},
    ),
    "sink": ({"sink": True}, (), {"hydra": "SINK"}),
    "weights used elsewhere": (
        {"escapes": "mean_2"},
        (),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "PROBS_ESCAPE"),
    ),
    "weights used elsewhere, others allowed": (
        {"escapes": "mean_2"},
        ("other_weights",),
        dict.fromkeys(("hydra", "skipat"), "PROBS_ESCAPE"),
    ),
    "weights used elsewhere, dropout allowed": (
        {"escapes": "mean_2"},
        ("drop_dropout",),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "PROBS_ESCAPE"),
    ),
    "dropout": (
        {"dropout": 0.1},
        (),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "DROPOUT_TRAINING"),
    ),
    "dropout, allowed": ({"dropout": 0.1}, ("drop_dropout",), {}),
    "dropout, other weights allowed": (
        {"dropout": 0.1},
        ("other_weights",),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "DROPOUT_TRAINING"),
    ),
    "key/value cache": ({"cached": True}, (), {"hydra": "CROSS_GRAPH", "skipat": "CROSS_GRAPH"}),
    "cross": ({"kind": "cross", "same_len": False}, (), {"skipat": "NOT_ATTENTION:cross"}),
    "value dim": ({"value_dim_differs": True}, (), {"hydra": "NEEDS_PARAMS"}),
    "first layer": ({"previous": False}, (), {"skipat": "CROSS_GRAPH"}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", TABLE)
def test_legality(row, form):
    traits, allow, declined = TABLE[row]
    found = legality(Traits(**(BASE | traits)), AT, allow)
    assert set(found) == set(FORMS)
    decline = found[form]
    assert (decline and decline.code) == declined.get(form)


@pytest.mark.parametrize("row", TABLE)
def test_every_decline_says_where_and_why(row):
    traits, allow, _ = TABLE[row]
    for decline in legality(Traits(**(BASE | traits)), AT, allow).values():
        if decline is not None:
            assert (decline.path, decline.source) == ("blocks.0.attn", "model.py:7")
            assert decline.node == (traits.get("escapes") or "softmax_1")
            assert decline.hint


def test_a_hint_offers_only_what_would_help():
    # hydra and skipat have no weights to return: no permission makes them legal
    found = legality(Traits(previous=True, escapes="mean_2"), AT)
    offered = {form for form, d in found.items() if d and "other_weights" in d.hint}
    assert offered == {"sigmoid", "relu"}
