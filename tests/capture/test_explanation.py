"""Sites and declines of a model, and what a plan would do, without a compiler."""

import pytest
import torch
from compiling import build, compiled, data

import attnpass
from attnpass import forms


def test_nothing_found_warns(caplog):
    report = attnpass.find_sites(torch.nn.Linear(4, 4), torch.rand(2, 4))
    assert report.sites == []
    assert "no attention found in Linear" in caplog.text


@pytest.mark.parametrize("form", forms.OPTIONS)
def test_explain_says_what_the_backend_does(form):
    model, x = build(2), data()
    with torch.no_grad():
        said = attnpass.explain(model, x, form=form)
        compiled(model, form=form)(x)
    assert said.rewritten == attnpass.compiled_report().rewritten
