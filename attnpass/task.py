"""Task: a model, the data to tune it on and the score, as a user gives them to the tuner.

A task is an import path, ``package.module:factory`` or ``file.py:factory``, so that a worker
process can load it too; the factory takes no arguments and returns a ``Task``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from attnpass.batch import Batch
from attnpass.errors import AttnpassError, TaskError
from attnpass.fingerprint import Contents, contents

BUILT_IN = {"digits": "attnpass.tuner.digits:task"}


@dataclass
class Task:
    """A model with the data to judge it.

    Attributes:
        name: shown in results.
        model: in the mode in which it is served (usually ``eval()``).
        example: arguments of one call as served, positional (a tuple) or named (a dict): its
            batch is what is timed.
        calibration: a few unlabelled batches, each the arguments of a call.
        validation: ``(arguments, target)`` per batch; selection and held-out come from these.
        score: ``score(output, target)`` -> one number per item, higher is better, finite.
        metric: the name of the score, e.g. ``accuracy``.
        recovery: unlabelled batches to distil on, none of them in ``validation``; each access may
            augment a batch anew. Without any, distillation uses ``calibration``.
        outputs: the kind of the model's output, ``logits`` or ``features`` (an encoder), which
            decides how distillation compares outputs.
        pooled: whether ``score`` needs all items of a split at once (retrieval). It is then called
            with the outputs and the targets of all batches, concatenated.
        path: the import path that the task was loaded from.
    """

    name: str
    model: nn.Module
    example: Batch
    calibration: Sequence[Batch]
    validation: Sequence[tuple[Batch, Any]]
    score: Callable[[Any, Any], Tensor]
    metric: str = "accuracy"
    recovery: Sequence[Batch] = ()
    outputs: str = "logits"
    pooled: bool = False
    path: str = field(default="", repr=False)

    def contents(self) -> Contents:
        """Digests of all that decides a score: model, score, data, and the sources behind them."""
        judged = [self.metric, self.outputs, self.pooled, list(self.validation), self.example]
        where = BUILT_IN.get(self.path, self.path).rpartition(":")[0]
        return contents(self.model, self.score, judged, [_module_name(where)])


def load_task(path: str) -> Task:
    """The task of a built-in name or an import path, checked.

    Raises:
        TaskError: it does not import, is no Task, or its validation set is empty.
    """
    target = BUILT_IN.get(path, path)
    where, sep, name = target.rpartition(":")
    if not sep:
        raise TaskError(
            f"expected a task '{', '.join(BUILT_IN)}', 'file.py:factory' or"
            f" 'package.module:factory', got {path!r}"
        )
    module = _module(where, path)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise TaskError(f"expected a function {name} in {where}, found none")
    try:
        task = factory()
    except AttnpassError:
        raise
    except Exception as error:
        raise TaskError(
            f"expected {path} to make a Task, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(task, Task):
        raise TaskError(f"expected {path} to return an attnpass.Task, got {type(task).__name__}")
    _check(task, path)
    task.path = path
    return task


def _module(where: str, path: str) -> ModuleType:
    """The module of a file or of a dotted name."""
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        file = Path(where).resolve()
        if not file.exists():
            raise TaskError(f"expected a file {where} for task {path}, found none")
        name = _module_name(where)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        sys.path.insert(0, str(file.parent))
        spec.loader.exec_module(module)
        return module
    except AttnpassError:
        raise
    except Exception as error:
        raise TaskError(
            f"expected task {path} to import, got {type(error).__name__}: {error}"
        ) from error


def _module_name(where: str) -> str:
    """The name of a task's module: that of a file holds a digest of its path."""
    if not where.endswith(".py"):
        return where
    path = str(Path(where).resolve())
    return f"attnpass_task_{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _check(task: Task, path: str) -> None:
    """Refuse a task without batches, of another output kind, or with a batch that is none."""
    for name in ("calibration", "validation"):
        if len(getattr(task, name)) == 0:
            raise TaskError(f"expected {path} with at least one {name} batch, got none")
    if task.outputs not in ("logits", "features"):
        raise TaskError(
            f"expected outputs of {path} to be 'logits' or 'features', got {task.outputs!r}"
        )
    batches = {
        "example": task.example,
        "calibration[0]": task.calibration[0],
        "validation[0][0]": task.validation[0][0],
    }
    for name, batch in batches.items():
        if not isinstance(batch, (tuple, dict)):
            raise TaskError(
                f"expected {name} of {path} to be a tuple of arguments, or a dict of named"
                f" ones, got {type(batch).__name__}; one argument x is (x,)"
            )


def score_batch(task: Task, output: object, target: object) -> Tensor:
    """Per-item scores ``[n]`` in float64, checked.

    Raises:
        TaskError: not one finite number per item.
    """
    scores = task.score(output, target)
    if not isinstance(scores, Tensor) or scores.dim() != 1:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TaskError(
            f"expected score() to return one number per item (a 1-D tensor), got {got}"
        )
    scores = scores.detach().double().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise TaskError(
            f"expected finite scores, got {int((~torch.isfinite(scores)).sum())} that"
            " are NaN or infinite; check the model's output and the score function"
        )
    return scores
