"""Task: a model, the data to tune it on and the score, as a user gives them to the tuner.

A task is an import path, ``package.module:factory`` or ``file.py:factory``, so that a worker
process can load it too; the factory takes no arguments and returns a ``Task``. Or it is the
description of a model and data, ``hf:FOLDER?data=FILE``, or a YAML file that holds one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from attnpass.batch import Batch
from attnpass.errors import AttnpassError, TaskError
from attnpass.fingerprint import Contents, contents
from attnpass.text import shown
from attnpass.torch_internals import pytree

BUILT_IN = {"digits": "attnpass.tuner.digits:task"}

WITHOUT_CODE = "attnpass.tuner.tasks"
"""The module that makes tasks of a model and data, without code of the user's."""

DESCRIBED = (r"(hf|st|timm|torchvision):", r".*\.ya?ml$")
"""Beginnings of such a task's description, and the file that holds one."""


@dataclass(frozen=True)
class Metric:
    """Another score that a plan has to keep, beside ``Task.score``.

    Attributes:
        score: as ``Task.score``. max_drop: allowed drop of its mean, None for that of the run.
    """

    score: Callable[[Any, Any], Tensor]
    max_drop: float | None = None


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
        examples: calls of several shapes as served, each with its weight > 0, which are timed
            instead of ``example``: ``[((x,), 0.8), ((longer,), 0.2)]``. A latency is then their
            weighted mean.
        metrics: by name, more scores that a plan has to keep, each within its own limit.
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
    examples: Sequence[tuple[Batch, float]] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    path: str = field(default="", repr=False)

    @property
    def served(self) -> list[tuple[Batch, float]]:
        """The calls that are timed, each with its share of all calls; the shares add up to 1."""
        given = list(self.examples) or [(self.example, 1.0)]
        total = sum(weight for _, weight in given)
        return [(batch, weight / total) for batch, weight in given]

    def contents(self) -> Contents:
        """Digests of all that decides a score: model, score, data, and the sources behind them."""
        judged = [self.metric, self.outputs, self.pooled, list(self.validation), self.example]
        judged += [list(self.examples)] if self.examples else []
        judged += [{name: (x.score, x.max_drop) for name, x in self.metrics.items()}]
        where = BUILT_IN.get(self.path, self.path).rpartition(":")[0]
        if _is_described(self.path):
            where = WITHOUT_CODE
        return contents(self.model, self.score, judged, [_module_name(where)])


def load_task(path: str, *, limit: float = 0.0) -> Task:
    """The task of a built-in name, an import path or a description, its fields checked.

    ``limit``: seconds that importing and making it may take, 0 for any number.

    Raises:
        TaskError: it does not import, is no Task, one of its fields is not usable, or it takes too
            long.
    """
    with _within(limit, path):
        factory = _factory(path)
        with users_code(f"{path} to make a Task"):
            task = factory()
    if not isinstance(task, Task):
        raise TaskError(f"expected {path} to return an attnpass.Task, got {type(task).__name__}")
    with users_code(f"the batches of {path} to be read"):
        _check(task, path)
    task.path = path
    return task


def _is_described(path: str) -> bool:
    return any(re.match(start, path) for start in DESCRIBED)


def _factory(path: str) -> Callable[[], object]:
    """What makes the task of a path.

    Raises:
        TaskError: it does not import, or there is no such function.
    """
    if _is_described(path):
        make: Callable[[str], object] = importlib.import_module(WITHOUT_CODE).make
        return partial(make, path)
    where, sep, name = BUILT_IN.get(path, path).rpartition(":")
    if not sep:
        raise TaskError(
            f"expected a task '{', '.join(BUILT_IN)}', 'file.py:factory',"
            " 'package.module:factory', 'hf:', 'st:', 'timm:' or 'torchvision:' with a model, or a"
            f" YAML file; got {shown(path)}"
        )
    with users_code(f"task {path} to import"):
        module = _module(where, path)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise TaskError(f"expected a function {name} in {where}, found none")
    found: Callable[[], object] = factory
    return found


@contextmanager
def users_code(expected: str) -> Iterator[None]:
    """Inside, whatever a user's code raises, ``sys.exit`` too, is a ``TaskError``.

    Raises:
        TaskError: ``expected`` and what came.
    """
    try:
        yield
    except (AttnpassError, KeyboardInterrupt, _Late):
        raise
    except BaseException as error:
        lines = [x for x in str(error).splitlines() if x.strip()] or ["no message"]
        raise TaskError(f"expected {expected}, got {type(error).__name__}: {lines[0]}") from error


class _Late(BaseException):
    """The time is over; no ``Exception``, which a user's code may catch."""


@contextmanager
def _within(seconds: float, path: str) -> Iterator[None]:
    """Inside, code that takes longer raises a ``TaskError``; in the main thread alone."""
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    # again and again: Python drops an exception that is raised in a finaliser
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    except _Late:
        raise TaskError(
            f"expected {path} to load within {seconds:g} s, got no task;"
            " give it more with --load-timeout"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _module(where: str, path: str) -> ModuleType:
    """The module of a file or of a dotted name."""
    if not where.endswith(".py"):
        return importlib.import_module(where)
    file = Path(where).resolve()
    if not file.is_file():
        raise TaskError(f"expected a file {where} for task {path}, found none")
    name = _module_name(where)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    return module


def _module_name(where: str) -> str:
    """The name of a task's module: that of a file holds a digest of its path."""
    if not where.endswith(".py"):
        return where
    path = os.fsencode(Path(where).resolve())
    return f"attnpass_task_{hashlib.sha256(path).hexdigest()[:12]}"


def _check(task: Task, path: str) -> None:
    """Refuse a task with a field of another type than ``Task`` says, naming the field.

    Raises:
        TaskError: the first such field.
    """
    for name, told, fit in FIELDS:
        value = getattr(task, name)
        if not fit(value):
            raise TaskError(
                f"expected Task.{name} of {path} to be {told}, got {type(value).__name__}"
            )
    if task.outputs not in ("logits", "features"):
        raise TaskError(
            f"expected Task.outputs of {path} to be 'logits' or 'features', got"
            f" {shown(task.outputs)}"
        )
    if any(x.is_meta for x in (*task.model.parameters(), *task.model.buffers())):
        raise TaskError(f"expected Task.model of {path} with weights, got some on the meta device")
    for name in ("calibration", "validation"):
        if len(getattr(task, name)) == 0:
            raise TaskError(f"expected {path} with at least one {name} batch, got none")
    _check_batch(task.example, "example", path)
    for name, metric in task.metrics.items():
        limit = metric.max_drop if isinstance(metric, Metric) else -1
        named = isinstance(name, str) and name not in ("", task.metric)
        if not named or not (limit is None or limit >= 0):
            raise TaskError(
                f"expected Task.metrics of {path} to be attnpass.Metric by a name of its own, each"
                f" with max_drop >= 0 or None, got {shown(name)}: {shown(metric)}"
            )
    for i, pair in enumerate(task.examples):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not _is_weight(pair[1]):
            raise TaskError(
                f"expected Task.examples[{i}] of {path} to be (arguments, weight > 0), got"
                f" {shown(pair)}"
            )
        _check_batch(pair[0], f"examples[{i}][0]", path)
    for name in ("calibration", "recovery"):
        if len(batches := getattr(task, name)):
            _check_batch(batches[0], f"{name}[0]", path)
    for i, pair in enumerate(task.validation):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TaskError(
                f"expected Task.validation[{i}] of {path} to be (arguments, target), got"
                f" {type(pair).__name__}"
            )
        _check_batch(pair[0], f"validation[{i}][0]", path)


def _is_weight(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < math.inf


def _check_batch(batch: object, name: str, path: str) -> None:
    """Refuse what are no arguments of a call."""
    if not isinstance(batch, (tuple, dict)) or not batch:
        raise TaskError(
            f"expected Task.{name} of {path} to be a tuple of arguments, or a dict of named"
            f" ones, got {type(batch).__name__}; one argument x is (x,)"
        )


def _batches(x: object) -> bool:
    """Whether batches can be counted and taken by number, again and again."""
    return hasattr(x, "__len__") and hasattr(x, "__getitem__") and not isinstance(x, (str, dict))


FIELDS: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
    ("name", "a string", lambda x: isinstance(x, str)),
    ("model", "a torch.nn.Module", lambda x: isinstance(x, nn.Module)),
    ("calibration", "a sequence of batches", _batches),
    ("validation", "a sequence of batches", _batches),
    ("recovery", "a sequence of batches", _batches),
    ("examples", "a sequence of (arguments, weight)", _batches),
    ("score", "a function", callable),
    ("metrics", "a dict of attnpass.Metric by name", lambda x: isinstance(x, Mapping)),
    ("metric", "a string", lambda x: isinstance(x, str)),
    ("outputs", "a string", lambda x: isinstance(x, str)),
    ("pooled", "true or false", lambda x: isinstance(x, bool)),
)
"""Fields of a task: the type that each must have, told and checked."""


def score_batch(
    task: Task,
    output: object,
    target: object,
    metric: str | None = None,
    worst: float | None = None,
) -> Tensor:
    """Per-item scores ``[n]`` in float64, checked; of ``Task.score``, or of another metric.

    Scores that are not finite count as ``worst``, where that is given.

    Raises:
        TaskError: ``score`` fails, or gives other than one finite number per item.
    """
    name = "Task.score" if metric is None else f"Task.metrics[{metric!r}].score"
    score = task.score if metric is None else task.metrics[metric].score
    with users_code(f"{name}(output, target) to return scores"):
        scores = score(output, target)
        if not isinstance(scores, Tensor) or scores.dim() != 1 or scores.is_complex():
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise TaskError(
                f"expected {name} to return one number per item (a 1-D tensor), got {got}"
            )
        scores = scores.detach().double().cpu()
        items = _items(output, target)
        if items and len(scores) not in items:
            raise TaskError(
                f"expected {name} to return one number per item, got {len(scores)} for"
                f" {min(items)} items"
            )
        if worst is not None:
            scores = scores.where(torch.isfinite(scores), worst)
        if not bool(torch.isfinite(scores).all()):
            raise TaskError(
                "expected finite scores, got"
                f" {int((~torch.isfinite(scores)).sum())} that are NaN or infinite; check the"
                f" model's output and {name}"
            )
    return scores


def _items(output: object, target: object) -> set[int]:
    """How many items a batch may have: by the sizes of the target and of the output."""
    first = next(
        (x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.dim()), None
    )
    found = set() if first is None else {len(first)}
    if isinstance(target, Tensor) and target.dim():
        # an item may be a sequence or, where there is a target for each, a token
        return {*found, len(target), target.numel()}
    if isinstance(target, (list, tuple)) and not any(hasattr(x, "__len__") for x in target):
        return {*found, len(target)}
    return found if first is None else {*found, first.shape[:2].numel()}
