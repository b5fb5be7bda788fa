"""A task tried once before anything is captured: its model runs, and its score can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnpass import fingerprint
from attnpass.batch import Batch, call
from attnpass.capture import buffers_kept
from attnpass.errors import TaskError
from attnpass.seeds import seeded
from attnpass.task import Task, score_batch, users_code
from attnpass.torch_internals import pytree

SAME = 1e-3
"""How far two scores of one output may differ: kernels of a GPU need not repeat themselves."""


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
