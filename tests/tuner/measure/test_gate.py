"""The correctness gate: what rounding explains passes in every dtype, another result never."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tuning import TINY

from attnpass import Capture, Plan
from attnpass.batch import call
from attnpass.errors import MeasureError
from attnpass.task import load_task
from attnpass.tuner.measure import gate as module
from attnpass.tuner.measure.ablation import AblationPlan
from attnpass.tuner.measure.gate import GATE, Gate, relative


def narrow(dtype):
    task = load_task(TINY)
    x = task.example[0].to(dtype)
    return replace(task, model=task.model.to(dtype), example=(x,))


def outputs(task, plan):
    capture = Capture(task.model).trace(*task.example)
    capture.use(plan)
    with torch.no_grad():
        return call(capture, task.example)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", [None, "hydra"])
def test_rounding_passes_and_another_result_does_not(dtype, form):
    task = narrow(dtype)
    plan = None if form is None else Plan.create(task.model, *task.example, form=form)
    checked, want = Gate(task), outputs(task, plan)
    exact = want if dtype == torch.float32 else checked._exact(plan, task.example)
    # as far from the exact result as the captured output is, on the other side
    checked.check(plan, task.example, want, (2 * exact.double() - want.double()).to(dtype))
    own = relative(want, exact)
    assert own < 0.05 and (own > 1e-4 or dtype == torch.float32)
    far = exact.double() * (1 + 1.5 * GATE + 3 * own)
    with pytest.raises(MeasureError, match="expected the compiled plan within .* of the"):
        checked.check(plan, task.example, want, far.float())
    other = outputs(task, Plan.create(task.model, *task.example, form="relu"))
    with pytest.raises(MeasureError, match="expected the compiled plan within"):
        checked.check(plan, task.example, want, other)


def test_an_ablation_is_compared_with_itself():
    task = narrow(torch.bfloat16)
    plan = AblationPlan.of(Capture(task.model).trace(*task.example).sites)
    assert relative(outputs(task, plan), Gate(task)._exact(plan, task.example)) < 0.05


def test_trained_deltas_are_no_foreign_weights_to_the_copy(warnings_):
    task = narrow(torch.bfloat16)
    plan = Plan.create(task.model, *task.example, form="hydra")
    from attnpass.recover import DistilOptions, add_deltas

    capture = Capture(task.model).trace(*task.example)
    add_deltas(capture, plan, DistilOptions())
    Gate(task)._exact(plan, task.example)
    assert warnings_() == []


def test_a_model_without_a_float32_copy_is_one_line(monkeypatch):
    task = narrow(torch.bfloat16)

    def fails(model):
        raise RuntimeError("cannot be copied\nat all")

    monkeypatch.setattr(module.copy, "deepcopy", fails)
    want = outputs(task, None)
    with pytest.raises(MeasureError, match="of which a float32 copy runs.*cannot be copied$"):
        Gate(task).check(None, task.example, want, want * 1.1)
