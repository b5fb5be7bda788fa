"""A task tried once before anything is captured: its model runs, and its score can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import fingerprint
from attnpass.batch import Batch, call
from attnpass.capture import buffers_kept
from attnpass.errors import TaskError
from attnpass.seeds import seeded
from attnpass.task import Task, score_batch, users_code
from attnpass.torch_internals import pytree
from attnpass.tuner.measure.accuracy import first_tensor

SAME = 1e-3
"""How far two scores of one output may differ: kernels of a GPU need not repeat themselves."""

CHANGED = 0.05
"""Relative difference of outputs that no rounding explains."""


def refuse_changed(task: Task, captured: Callable[..., Any]) -> None:
    """Refuse a model whose results torch.compile changes before anything is rewritten.

    ``captured``: the model's graphs as Dynamo captured them. A model that gives two results is not
    compared.

    Raises:
        TaskError: the outputs for the example differ by more than rounding.
    """

    def taken(model: Callable[..., Any], seed: int) -> Tensor:
        with torch.no_grad(), seeded(seed), buffers_kept(task.model):
            return first_tensor(call(model, task.example)).double().cpu()

    want, again, got = taken(task.model, 0), taken(task.model, 1), taken(captured, 0)
    if want.shape != got.shape or not torch.equal(want, again):
        return
    kept = want.isfinite()
    off = float((got - want)[kept].norm() / want[kept].norm().clamp_min(1e-12))
    if off > CHANGED or not bool(got[kept].isfinite().all()):
        raise TaskError(
            "expected torch.compile to leave the model's results as they are, got outputs that are"
            f" off by {off:.0%} before anything was rewritten: Dynamo changes this model with any"
            " backend; find the part with torch.compile(part, backend='eager') and exempt it with"
            " torch.compiler.disable"
        )


def try_task(task: Task) -> Task:
    """The task, its model run on the first batch of each kind and its first batch scored twice.

    Raises:
        TaskError: the field of the task that fails, or scores that differ from one time to the
            next.
    """
    # the user's generators and buffers are as they were
    with torch.no_grad(), seeded(0), buffers_kept(task.model):
        _run(task, task.example, "example")
        for i, (batch, _) in enumerate(task.examples):
            _run(task, batch, f"examples[{i}]")
        _run(task, task.calibration[0], "calibration[0]")
        first, again = (_score(task) for _ in range(2))
    if first.shape != again.shape or not torch.allclose(first, again, rtol=SAME, atol=SAME):
        raise TaskError(
            f"expected the same scores of {task.path or task.name} twice, got others the second"
            " time; put Task.model in eval mode, and draw nothing at random in Task.score"
        )
    return task


def _run(task: Task, arguments: Batch, name: str) -> object:
    """The model's output for one batch."""
    with users_code(f"Task.model of {task.path or task.name} to run on Task.{name}"):
        output = call(task.model, arguments)
    if not any(isinstance(x, Tensor) for x in pytree.tree_leaves(output)):
        raise TaskError(
            f"expected Task.model of {task.path or task.name} to return a tensor, got"
            f" {type(output).__name__}"
        )
    return output


def _score(task: Task) -> Tensor:
    arguments, target = task.validation[0]
    output = _run(task, arguments, "validation[0][0]")
    return score_batch(task, output, target)


def model_digest(model: nn.Module) -> str:
    """Digest of a model's parameters and buffers, 16 hex digits."""
    return fingerprint.digest([*model.parameters(), *model.buffers()])
