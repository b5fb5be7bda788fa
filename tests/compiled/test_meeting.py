"""A layer that a compiled graph meets later: its own values under a variant that exists."""

from __future__ import annotations

import torch
from compiling import BOUND, build, captured, data, error, make_plan

import attnpass
from attnpass import Plan


def test_a_layer_that_comes_later_is_recognised_and_reported(tmp_path):
    model, x = build(3), data()
    plan = make_plan(model, x)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        path = plan.save(tmp_path / "plan.json")
        torch._dynamo.reset()
        attnpass.reset_report()
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": Plan.load(path)})
        assert error(model(x), want) <= BOUND
    assert attnpass.compiled_report().rewritten == dict.fromkeys(plan.sites, "sigmoid")


def test_a_layer_of_other_weights_runs_unchanged_and_is_said(tmp_path, caplog):
    model, x = build(2), data()
    path = make_plan(model, x).save(tmp_path / "plan.json")
    with torch.no_grad():
        torch._dynamo.reset()
        loaded = Plan.load(path)
        for block in model.blocks:
            block.compile(backend="attnpass", options={"inner": "eager", "plan": loaded})
        first = model.blocks[0](x)
        for p in model.blocks[1].parameters():
            p.mul_(1.5)
        want = build(2).blocks[1]
        want.load_state_dict(model.blocks[1].state_dict())
        assert error(model.blocks[1](first), want(first)) <= BOUND
    assert "does not know" in caplog.text
