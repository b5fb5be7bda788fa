"""A user's own training loop updates the model and the plan."""

from __future__ import annotations

import re

import pytest
import torch
from scripts import train_forms

import attnpass


@pytest.mark.parametrize("name", ["hydra, last 3", "skipat r=2, layers 2 to 4"])
def test_a_training_loop_updates_the_model_and_the_plan(name, monkeypatch):
    before = []
    create = attnpass.Plan.create

    def kept(model, *args, **given):
        plan = create(model, *args, **given)
        named = [*model.named_parameters(), *(("plan", p) for p in plan.parameters())]
        before.extend((name, p, p.detach().clone()) for name, p in named)
        return plan

    monkeypatch.setattr(train_forms.Plan, "create", kept)
    hits, loss = train_forms.train(train_forms.CASES[name], 0, 1, "eager")
    assert 0 < hits < 1 and 0 < loss < 2.5
    # a skipped layer's own attention never runs
    unused = r"blocks\.[234]\.(attn|norm1)\." if "skipat" in name else "nothing"
    assert any(path == "plan" for path, _, _ in before)
    for path, new, old in before:
        assert torch.equal(new, old) == bool(re.match(unused, path)), path
