"""The round trip of a task: equal to eager in every dtype, and able to say that it is not."""

from __future__ import annotations

import pytest
import torch
from roundtrip import cast
from tuning import TINY

from attnpass import forms
from attnpass.task import load_task
from attnpass.tuner.check.roundtrip import check_roundtrip

BOUND = 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_task_is_equal_after_the_round_trip(dtype):
    task = load_task(TINY)
    task.model, task.example = task.model.to(dtype), cast(task.example, dtype)
    found = check_roundtrip(task)
    assert found.equal and found.all <= found.allowed and len(found.sites) == 3
    assert (found.allowed == BOUND) == (dtype == torch.float32)
    assert found.as_dict()["sites"] == found.sites


def test_a_site_that_is_read_wrong_is_not_equal(monkeypatch):
    build = forms.build

    def wrong(form, site, *given, **options):
        module = build(form, site, *given, **options)
        module.register_forward_hook(lambda m, x, out: out * 1.01)
        return module

    monkeypatch.setattr(forms, "build", wrong)
    found = check_roundtrip(load_task(TINY))
    assert not found.equal and all(error > BOUND for error in found.sites.values())
