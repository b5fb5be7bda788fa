"""Per-item scores of a model on a task, their split, and how far outputs moved.

Scores are one number per item, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import call
from attnpass.recover import LOGIT_FLOOR
from attnpass.task import Task, score_batch
from attnpass.torch_internals import pytree
from attnpass.tuner.measure.bounds import binary

HELD_OUT = 600
"""Items that a held-out split should have; below it the set is cross-fitted."""


@dataclass(frozen=True)
class Split:
    """Which validation batches select plans and which judge them.

    ``crossed``: the set is too small for both; each half judges what the other half selected.
    """

    selection: tuple[int, ...]
    held_out: tuple[int, ...]
    crossed: bool


def split(sizes: Sequence[int]) -> Split:
    """The split of batches of these sizes: 40 % of the items select plans, 600 or more judge.

    Where fewer are left to judge, or the first batch alone exceeds 40 %, the split is crossed.
    """
    total, taken, selection = sum(sizes), 0, []
    for i, n in enumerate(sizes):
        if taken + n > 0.4 * total:
            break
        selection.append(i)
        taken += n
    if total - taken < HELD_OUT or not selection:
        every = tuple(range(len(sizes)))
        return Split(every, every, True)
    return Split(tuple(selection), tuple(range(len(selection), len(sizes))), False)


def scores(
    task: Task,
    run: Callable[..., Any],
    batches: Sequence[int],
    *,
    base: Tensor | None = None,
    max_drop: float = math.inf,
) -> tuple[Tensor, bool]:
    """Per-item scores of ``run`` over ``batches``, and whether they are complete.

    With ``base`` (the baseline's 0/1 scores of the same items) it stops as soon as the drop over
    all items must exceed ``max_drop``, even if every item left that the baseline missed were won.

    Raises:
        TaskError: scores that are not one finite number per item.
    """
    if task.pooled:
        return pooled_scores(task, [answer(task, run, i) for i in batches], batches), True
    found: list[Tensor] = []
    stops = base is not None and binary(base)
    for i in batches:
        arguments, target = task.validation[i]
        with torch.no_grad():
            found.append(score_batch(task, call(run, arguments), target))
        if stops and base is not None:
            done = torch.cat(found)
            if binary(done) and len(done) < len(base):
                lost = float((base[: len(done)] - done).sum())
                hope = float((1 - base[len(done) :]).sum())
                if (lost - hope) / len(base) > max_drop:
                    return done, False
    return torch.cat(found), True


def answer(task: Task, run: Callable[..., Any], batch: int) -> Tensor:
    """The first tensor that a model returns for one validation batch.

    Raises:
        ValueError: it returns no tensor.
    """
    with torch.no_grad():
        return first_tensor(call(run, task.validation[batch][0]))


def pooled_scores(task: Task, outputs: Sequence[Tensor], batches: Sequence[int]) -> Tensor:
    """Per-item scores where all items of a split are judged together.

    Raises:
        TaskError: scores that are not one finite number per item.
    """
    targets = torch.cat([task.validation[i][1] for i in batches])
    return score_batch(task, torch.cat(list(outputs)), targets)


def divergence(
    task: Task, run: Callable[..., Any], reference: Sequence[Tensor], batches: Sequence[int]
) -> float:
    """How far outputs moved: KL of the class distributions, else relative squared error."""
    # imported late: showing stored scores needs no recovery

    total = weight = 0.0
    for i, old in zip(batches, reference, strict=True):
        with torch.no_grad():
            new = first_tensor(call(run, task.validation[i][0])).double()
        if task.outputs == "logits" and old.dim() == 2 and old.shape[1] > 1:
            # a class whose logit is -inf in both outputs adds 0, not NaN
            p, q = (x.log_softmax(-1).clamp_min(LOGIT_FLOOR) for x in (old, new))
            total += float((p.exp() * (p - q)).sum())
            weight += old.shape[0]
        else:
            total += float((new - old).square().sum())
            weight += float(old.square().sum())
    return total / max(weight, 1e-30)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a model's output.

    Raises:
        ValueError: there is none.
    """
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError("expected a model that returns a tensor, got none")
