"""A plan met with a model."""

from __future__ import annotations

import re

import pytest
import torch
from tuning import TINY

from attnpass import Plan
from attnpass.plan import Delta
from attnpass.task import load_task
from attnpass.tuner.check.verify import verify_plan


@pytest.fixture
def task():
    return load_task(TINY)


def test_a_plan_that_fits_has_no_problems(task):
    plan = Plan.create(task.model, *task.example, form="hydra", sites="blocks.[12].attn")
    found = verify_plan(plan, task)
    assert found.problems == [] and len(found.rewritten) == 2
    assert (found.plan, found.items, found.baseline) == (plan.hash, 60, 1.0)
    assert 0 <= found.score <= 1
    assert found.as_dict()["torch"] == torch.__version__


def test_a_site_that_is_missing_or_does_not_fit_is_named(task):
    plan = Plan.create(task.model, *task.example, form="hydra")
    plan.sites["elsewhere"] = plan.sites["blocks.0.attn"]
    plan.sites["blocks.1.attn"].fits["heads"] = 99
    problems = verify_plan(plan, task).problems
    absent = "expected the plan's site elsewhere in the model, found none"
    assert any(line.startswith(absent) for line in problems)
    assert any("heads 99" in line for line in problems) and len(problems) == 2


def test_other_weights_void_the_numbers(task):
    plan = Plan.create(task.model, *task.example, form="hydra")
    with torch.no_grad():
        task.model.blocks[2].attn.qkv.weight.add_(0.1)
    (problem,) = verify_plan(plan, task).problems
    assert "got others at blocks.2.attn: its numbers are void" in problem


def with_delta(task, path, shape):
    plan = Plan.create(task.model, *task.example, form="hydra")
    plan.deltas["blocks.1.attn"] = {path: Delta.of({"full": torch.zeros(shape)})}
    return plan


@pytest.mark.parametrize(
    ("path", "shape", "got"),
    [
        ("blocks.1.attn.qkv.weight", (47, 16), r"got shape \(48, 16\)"),
        ("blocks.1.attn.none.weight", (48, 16), "got none"),
    ],
)
def test_a_delta_that_compiling_refuses_is_a_problem(task, path, shape, got):
    found = verify_plan(with_delta(task, path, shape), task)
    (problem,) = found.problems
    assert re.search(f"expected the weight {path} that the plan changes, {got}", problem)
    assert set(found.rewritten) == {"blocks.0.attn", "blocks.2.attn"}, "whole or not at all"


def test_outputs_that_are_not_finite_are_a_problem(task):
    plan = with_delta(task, "blocks.1.attn.qkv.weight", (48, 16))
    with torch.no_grad():
        plan.deltas["blocks.1.attn"]["blocks.1.attn.qkv.weight"].full.fill_(torch.inf)
    (problem,) = verify_plan(plan, task).problems
    assert problem.startswith("expected finite outputs, got ")


def test_what_the_model_itself_gives_is_no_problem(task):
    with torch.no_grad():
        task.model.head.bias[0] = -torch.inf
    plan = Plan.create(task.model, *task.example, form="hydra")
    assert verify_plan(plan, task).problems == []
