"""Compiled variants: several plans and models at once, parameters that change and learn."""

import os
import subprocess
import sys

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


AGAIN = """
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from attnpass.plan import Entry, Plan

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

torch.manual_seed(0)
model, x = Attention().eval(), torch.randn(2, 512, 32)
with torch.no_grad():
    want = model(x)
    for form in ("softmax", "sigmoid", "hydra"):
        plan = Plan.create(model, x, form=form)
        plan.round_trip = True
        torch._dynamo.reset()
        run = torch.compile(model, backend="attnpass", options={"plan": plan, "strict": True})
        got = run(x)
        assert form != "softmax" or torch.allclose(got, want, atol=1e-5)
        print(form, got.double().norm().item(), sorted(k for k in counters["aot_autograd"]))
        counters.clear()
"""


@pytest.mark.slow
def test_another_process_runs_what_is_in_the_compilers_cache(tmp_path):
    """It traces no form there, and has the operators all the same."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", AGAIN], capture_output=True, text=True, env=env, timeout=600
        )
        for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, second.stderr[-2000:]
    rows = [list(map(str.split, run.stdout.splitlines())) for run in (first, second)]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]] and len(rows[0]) == 3
    assert "autograd_cache_miss" in first.stdout and "autograd_cache_hit" not in first.stdout
    assert second.stdout.count("autograd_cache_hit") == 3
