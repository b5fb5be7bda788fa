"""Which form is legal at which site: the table of rules, and what ``allow`` waives."""

import pytest
from models import POSITIVES, Attention

import attnpass
from attnpass.matching.legality import RULES, Traits, legality
from attnpass.site import FORMS, Decline

AT = Decline("", "blocks.0", "model.py:3", node="softmax")


def illegal(traits, allow=()):
    """Form to code for every form that is not legal."""
    found = legality(traits, AT, allow)
    assert list(found) == list(FORMS)
    return {form: no.code for form, no in found.items() if no is not None}


LEGAL = {"previous": True}
TABLE = [
    ({}, {}),
    ({"previous": False}, {"skipat": "CROSS_GRAPH"}),
    ({"bias": True}, {"hydra": "BIAS_NOT_SUPPORTED"}),
    ({"mask": frozenset({"causal", "padding"})}, {}),
    (
        {"mask": frozenset({"arbitrary"})},
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    ({"mask": frozenset({"causal"}), "same_len": False}, {"hydra": "MASK_ARBITRARY"}),
    ({"softcap": True}, {"hydra": "SOFTCAP"}),
    ({"mixed": True}, {"hydra": "TALKING_HEADS", "skipat": "TALKING_HEADS"}),
    (
        {"mixed": True, "swappable": False},
        {
            **dict.fromkeys(("softmax", "sigmoid", "relu"), "AXIS_UNPROVEN"),
            **dict.fromkeys(("hydra", "skipat"), "TALKING_HEADS"),
        },
    ),
    ({"sink": True}, {"hydra": "SINK"}),
    (
        {"sink": True, "softcap": True},
        {"hydra": "SOFTCAP", "sigmoid": "SINK", "relu": "SINK"},
    ),
    ({"escapes": "sum"}, dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "PROBS_ESCAPE")),
    ({"mixed_fills": True}, {}),
    ({"mixed_fills": True, "swappable": False}, {"softmax": "MASK_FILLS"}),
    ({"dropout": 0.1}, dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "DROPOUT_TRAINING")),
    ({"cached": True}, {"hydra": "CROSS_GRAPH", "skipat": "CROSS_GRAPH"}),
    ({"kind": "cross"}, {"skipat": "NOT_ATTENTION:cross"}),
    ({"kind": "class"}, {"skipat": "NOT_ATTENTION:cross"}),
    ({"value_dim_differs": True}, {"hydra": "NEEDS_PARAMS"}),
]


@pytest.mark.parametrize(("traits", "expected"), TABLE, ids=lambda x: "-".join(map(str, x)))
def test_rule(traits, expected):
    assert illegal(Traits(**(LEGAL | traits))) == expected


def test_every_rule_has_a_row():
    codes = {code for _, expected in TABLE for code in expected.values()}
    assert codes == {code for _, code, *_ in RULES}


@pytest.mark.parametrize(
    ("allow", "traits", "left"),
    [
        ("drop_dropout", {"dropout": 0.1}, {}),
        ("other_weights", {"escapes": "sum"}, dict.fromkeys(("hydra", "skipat"), "PROBS_ESCAPE")),
        ("other_weights", {"dropout": 0.1, "kind": "cross"}, None),
    ],
)
def test_what_a_user_allows_is_waived_and_nothing_else(allow, traits, left):
    traits = Traits(**(LEGAL | traits))
    assert illegal(traits, (allow,)) == (illegal(traits) if left is None else left)


def test_a_decline_says_where_and_who():
    no = legality(Traits(bias=True), AT)["hydra"]
    assert (no.path, no.source, no.node) == ("blocks.0", "model.py:3", "softmax") and no.hint
    assert legality(Traits(escapes="sum"), AT)["relu"].node == "sum"


def test_returned_weights_forbid_all_but_allowed_forms():
    from models import Multihead

    model, (x,) = Multihead(weights=True).eval(), POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(model, x).sites
    assert {f for f, no in site.legal.items() if no is None} == {"softmax"}
    codes = {no.code for f, no in site.legal.items() if f not in ("softmax", "skipat")}
    assert codes == {"PROBS_ESCAPE"}


def test_other_weights_may_be_allowed():
    from models import Multihead

    model, (x,) = Multihead(weights=True).eval(), POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(model, x, allow=("other_weights",)).sites
    assert site.legal["sigmoid"] is None


def test_dropout_in_training_is_recorded_and_decided_by_allow():
    from models import dropped

    model, (x,) = Attention(dropped).train(), POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(model, x).sites
    assert site.dropout == pytest.approx(0.3)
    assert site.legal["softmax"] is None
    assert site.legal["sigmoid"].code == "DROPOUT_TRAINING"
    (site,) = attnpass.find_sites(model, x, allow=("drop_dropout",)).sites
    assert site.legal["sigmoid"] is None
    (site,) = attnpass.find_sites(model.eval(), x).sites
    assert site.dropout == 0.0 and site.legal["sigmoid"] is None
