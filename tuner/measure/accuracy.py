"""Paired per-item scores, splits, and one-sided bounds on the drop that they prove.

Scores are one number per item, higher is better. ``drop`` is the mean of baseline minus plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import optimize, stats
from torch import Tensor

from attnpass.batch import call
from attnpass.recover import LOGIT_FLOOR
from attnpass.task import Task, score_batch
from attnpass.torch_internals import pytree

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
    """Batches by index, 40 % of the items to selection, where 600 or more are left to judge."""
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


@dataclass(frozen=True)
class Bound:
    """What a set of items says about a plan's drop against the baseline.

    Attributes:
        items: how many items.
        score: the plan's mean score. drop: baseline's mean minus the plan's.
        upper: one-sided upper bound on the true drop at ``confidence``.
    """

    items: int
    score: float
    drop: float
    upper: float
    confidence: float

    def as_dict(self) -> dict[str, float]:
        """The bound as plain JSON types."""
        return dict(self.__dict__)


def bound(base: Tensor, plan: Tensor, confidence: float = 0.95, items: int | None = None) -> Bound:
    """The paired bound of two score vectors over the same items.

    With ``items`` the bound that so many would give, were they distributed like these.

    For scores of 0 and 1 Tango's score interval (1998) for paired proportions, otherwise Student's
    t; never below the exact bound for no loss at all, ``range * (1 - alpha^(1/n))``.

    Raises:
        ValueError: the vectors differ in length or are empty.
    """
    if base.shape != plan.shape or not len(base):
        raise ValueError(f"expected paired scores, got {len(base)} and {len(plan)}")
    n, alpha = items or len(base), 1 - confidence
    drop = float((base - plan).mean())
    if binary(base) and binary(plan):
        lost, won = (n * float(x.double().mean()) for x in (base > plan, base < plan))
        upper, span = _tango(lost, won, n, float(stats.norm.ppf(confidence))), 1.0
    else:
        spread = float((base - plan).std()) if len(base) > 1 else math.inf
        t = float(stats.t.ppf(confidence, max(n - 1, 1)))
        upper = drop + t * spread / math.sqrt(n)
        span = max(float((base - plan).abs().max()), float(base.max() - base.min()))
    return Bound(
        n, float(plan.mean()), drop, max(upper, span * (1 - alpha ** (1 / n))), confidence
    )


def binary(scores: Tensor) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def _tango(lost: float, won: float, n: int, z: float) -> float:
    """Upper end of Tango's interval for ``(lost - won) / n``."""

    def excess(d: float) -> float:
        # q is the maximum-likelihood share of `won` under a true difference d
        b = -lost - won + (2 * n - lost + won) * d
        c = -won * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        return (n * d - (lost - won)) / math.sqrt(max(variance, 1e-300)) - z

    low = max((lost - won) / n, -1.0) + 1e-12
    if excess(1 - 1e-9) <= 0:
        return 1.0
    return float(optimize.brentq(excess, low, 1 - 1e-9))


def needed(max_drop: float, confidence: float = 0.95) -> int:
    """How many items prove ``max_drop`` when not a single one is lost."""
    if max_drop <= 0:
        return 0
    return math.ceil(math.log(1 - confidence) / math.log(1 - min(max_drop, 0.999)))


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
    """What a model returns for one validation batch, its first tensor.

    Raises:
        ValueError: it returns none.
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
    total = weight = 0.0
    for i, old in zip(batches, reference, strict=True):
        with torch.no_grad():
            new = first_tensor(call(run, task.validation[i][0])).double()
        if task.outputs == "logits" and old.dim() == 2 and old.shape[1] > 1:
            # classes that are ruled out by -inf have no divergence, not NaN
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
