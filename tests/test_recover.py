"""Calibration as a library call: what it changes, what it refuses, what it holds in memory."""

from __future__ import annotations

import pytest
import torch
from test_cli import TINY
from torch.utils._python_dispatch import TorchDispatchMode

import attnpass
from attnpass import forms, recover
from attnpass.errors import OptionError, PlanError
from attnpass.kernels.tile import Tile
from attnpass.task import load_task
from attnpass.tuner.digits import DigitsViT


def test_calibrate_is_one_call_and_leaves_the_model_alone():
    task = load_task(TINY)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    start = plan.hash
    errors = attnpass.calibrate(task.model, plan, task.calibration)
    assert set(errors) == set(plan.sites) and all(0 <= e < 0.1 for e in errors.values())
    assert plan.hash != start
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_calibrate_wants_inputs_and_a_plan_of_the_model():
    task = load_task(TINY)
    plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
    with pytest.raises(OptionError, match="expected at least one batch of inputs"):
        attnpass.calibrate(task.model, plan, [])
    other = DigitsViT(dim=16, depth=2, heads=2).eval()
    with pytest.raises(PlanError, match="expected the plan's site blocks.2.attn in the model"):
        attnpass.calibrate(other, plan, task.calibration)


@pytest.mark.parametrize(("form", "h"), [("sigmoid", None), ("relu", "relu")])
def test_calibration_by_blocks_of_rows_is_the_same(form, h, monkeypatch):
    task = load_task(TINY)
    monkeypatch.setattr(recover, "LOGITS", 10**9)  # no logit is left out
    results = []
    for rows in (10_000, 7):
        monkeypatch.setattr(recover, "ROWS", rows)
        plan = attnpass.Plan.create(task.model, *task.example, form=form)
        attnpass.calibrate(task.model, plan, task.calibration)
        results.append(plan.tensors())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def test_calibration_holds_few_logits_at_a_time():
    b, h, n, d = 4, 2, 2048, 4
    q, k, v = torch.randn(3, b, h, n, d)
    module = forms.Pointwise(h, h, d, h="sigmoid", tile=Tile(block_m=128, block_n=256))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with torch.no_grad(), Watch():
        recover.fit(module, [recover.Sample(q, k, v, None, None, v)])
    assert largest <= b * h * recover.ROWS * n < b * h * n * n


def test_a_part_in_training_mode_keeps_its_buffers():
    net = DigitsViT(dim=16, depth=2, heads=2).eval()
    net.stem[1].train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, 1, 32, 32)
    plan = attnpass.Plan.create(net, x, form="sigmoid")
    attnpass.calibrate(net, plan, [(x,)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
