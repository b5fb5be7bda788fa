"""A task is tried before anything is captured: the field that fails is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_tasks import tiny
from torch import nn

from attnpass.errors import TaskError
from attnpass.tuner.digits import correct
from attnpass.tuner.measure import model_digest, refuse_changed, try_task


def test_a_task_that_works_comes_back_with_nothing_changed():
    task = replace(tiny(), model=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024)))
    before, state = model_digest(task.model), torch.get_rng_state()
    assert try_task(task) is task
    assert model_digest(task.model) == before and torch.equal(torch.get_rng_state(), state)


class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("first\nsecond")


class Silent(nn.Module):
    def forward(self, x):
        return {"a": 3}


class Leaving(nn.Module):
    def forward(self, x):
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": Raising()},
            r"Task.model of tiny to run on Task.example, got ValueError: first$",
        ),
        ({"model": Leaving()}, "Task.model of tiny to run on Task.example, got SystemExit: 0"),
        ({"model": Silent()}, "Task.model of tiny to return a tensor, got dict"),
        ({"example": (torch.rand(2, 3),)}, "to run on Task.example, got"),
        ({"calibration": [(torch.rand(2, 3),)]}, r"to run on Task.calibration\[0\], got"),
        ({"validation": [((torch.rand(2, 3),), None)]}, r"to run on Task.validation\[0\]\[0\]"),
        ({"score": lambda out, target: 1 / 0}, "Task.score.*ZeroDivisionError"),
        ({"score": lambda out, target: correct(out, target)[:3]}, "got 3 for 10 items"),
        ({"score": lambda out, target: torch.rand(10)}, "the same scores of tiny twice"),
        ({"score": lambda out, target: correct(out, target).numpy()}, "got ndarray"),
        ({"score": lambda out, target: {"a": 1}}, "got dict"),
    ],
)
def test_the_field_that_fails_is_named(change, message):
    with pytest.raises(TaskError, match=message):
        try_task(replace(tiny(), **change))


def test_a_digest_of_a_model_knows_parameters_and_buffers():
    model = nn.BatchNorm1d(3)
    digests = [model_digest(model)]
    model.weight.data[0] = 2.0
    digests.append(model_digest(model))
    model.running_mean[0] = 2.0
    digests.append(model_digest(model))
    assert len(set(digests)) == 3


def test_a_model_that_dynamo_changes_is_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return torch.rand_like(x)

    task = replace(tiny(), model=nn.Linear(32, 4))
    refuse_changed(task, task.model)
    refuse_changed(task, lambda x: task.model(x) * 1.01)
    for wrong in (lambda x: task.model(x) * 1.1, lambda x: task.model(x) / 0):
        with pytest.raises(TaskError, match="are off by .* before anything was rewritten"):
            refuse_changed(task, wrong)
    refuse_changed(task, lambda x: task.model(x)[:1])  # of another shape: nothing to compare
    refuse_changed(replace(task, model=Noisy()), task.model)
