"""Compiled variants: several plans and models at once, parameters that change and learn."""

import pytest
import torch
from compiling import BOUND, INNER, build, captured, compiled, data, error, make_plan, shaken
from models import Block
from torch import nn

from attnpass import Plan


@pytest.mark.parametrize("inner", INNER)
def test_a_changed_parameter_is_seen_by_compiled_code(inner):
    model, x = build(2), data()
    plan = make_plan(model, x)
    run = compiled(model, inner, plan=plan)
    with torch.no_grad():
        before = run(x)
        next(iter(plan.parameters())).add_(1.0)
        after = run(x)
        assert error(after, before) > 1e-4
        assert error(after, captured(model, plan, x)(x)) <= BOUND


def test_configurations_in_one_process():
    model, x = build(2), data()
    with torch.no_grad():
        eager = model(x)
        wanted = {}
        for form in ("relu", "hydra"):
            wanted[form] = captured(model, Plan.create(model, x, form=form), x)(x)
        runs = {form: compiled(model, form=form) for form in wanted}
        plain = compiled(model)
        for _ in range(2):
            for form, run in runs.items():
                assert error(run(x), wanted[form]) <= BOUND
            assert error(plain(x), eager) <= BOUND


def test_two_plans_and_two_models_of_one_class():
    one, two, x = build(2), build(2), data()
    with torch.no_grad():
        for parameter in two.parameters():
            parameter += 0.1
        plans = [make_plan(m, x, f) for m, f in ((one, "relu"), (two, "sigmoid"))]
        wanted = [captured(m, p, x)(x) for m, p in zip((one, two), plans, strict=True)]
        runs = [compiled(m, plan=p) for m, p in zip((one, two), plans, strict=True)]
        for _ in range(2):
            for run, want in zip(runs, wanted, strict=True):
                assert error(run(x), want) <= BOUND


def test_shared_module_and_module_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()
            self.again = self.block

        def forward(self, x):
            return self.again(self.block(self.block(x)))

    torch.manual_seed(0)
    model, x = Twice().eval(), data()
    plan = Plan.create(model, x, form="relu")
    names = list(plan.sites)
    assert len(names) == 3
    plan.sites[names[1]].form = "softmax"
    plan.values.pop(names[1], None)
    plan = shaken(plan)
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        got = compiled(model, plan=plan)(x)
        assert error(got, want) <= BOUND


def test_training_learns():
    """A few steps on plan and model: the loss falls, and the compiled code sees the updates."""
    model, x = build(2).train(), data(4)
    plan = Plan.create(model, x, form="relu")
    run = compiled(model, "aot_eager", plan=plan)
    optimiser = torch.optim.Adam([*model.parameters(), *plan.parameters()], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = run(x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert error(run(x), captured(model, plan, x)(x)) <= BOUND
