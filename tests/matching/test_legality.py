"""Which form is legal at which site: the table of rules, and what ``allow`` waives."""

import pytest
from models import (
    POSITIVES,
    Attention,
)

import attnpass


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
