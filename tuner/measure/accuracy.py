"""Per-item scores of a model on a task, their split, and how far outputs moved.

Scores are one number per item, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import call
from attnpass.recover import LOGIT_FLOOR
from attnpass.task import Task, score_batch
from attnpass.torch_internals import pytree
from attnpass.tuner.measure.rejection import Rejection

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


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a model over some batches.

    Attributes:
        main: of ``Task.score``, ``[n]``, batch after batch. more: of each of ``Task.metrics``.
        batches: that were scored, in ascending order. complete: whether they are all.
    """

    main: Tensor
    more: Mapping[str, Tensor]
    batches: tuple[int, ...]
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        """The scores as plain JSON types."""
        more = {name: x.tolist() for name, x in self.more.items()}
        rest = {"batches": list(self.batches), "complete": self.complete}
        return {"scores": self.main.tolist(), **({"more": more} if more else {}), **rest}


def scores(
    task: Task,
    run: Callable[..., Any],
    batches: Sequence[int],
    *,
    worst: Mapping[str, float] | None = None,
    rejection: Rejection | None = None,
    seen: Callable[[int, Any], None] = lambda batch, output: None,
) -> Scored:
    """Scores of ``run`` over ``batches``; ``seen`` is told every batch's output.

    With ``rejection`` it stops as soon as they prove too large a drop. ``worst``: by metric, what
    a score that is not finite counts as.

    Raises:
        TaskError: scores that are not one finite number per item.
    """
    lowest = worst or {}
    if task.pooled:
        outputs = [answer(task, run, i) for i in batches]
        return pooled_scores(task, outputs, batches, lowest)
    found: dict[int, Tensor] = {}
    more: dict[int, dict[str, Tensor]] = {}
    for i in batches if rejection is None else rejection.order:
        arguments, target = task.validation[i]
        with torch.no_grad():
            output = call(run, arguments)
        seen(i, output)
        found[i], more[i] = _every(task, output, target, lowest)
        if rejection is not None and rejection(found):
            break
    done = sorted(found)
    joined = {m: torch.cat([more[i][m] for i in done]) for m in task.metrics}
    main = torch.cat([found[i] for i in done])
    return Scored(main, joined, tuple(done), len(done) == len(batches))


def _every(
    task: Task, output: object, target: object, lowest: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scores of one output by ``Task.score``, and by each of ``Task.metrics``."""
    main = score_batch(task, output, target, worst=lowest.get(task.metric))
    return main, {m: score_batch(task, output, target, m, lowest.get(m)) for m in task.metrics}


def answer(task: Task, run: Callable[..., Any], batch: int) -> Tensor:
    """The first tensor that a model returns for one validation batch.

    Raises:
        ValueError: it returns no tensor.
    """
    with torch.no_grad():
        return first_tensor(call(run, task.validation[batch][0]))


def pooled_scores(
    task: Task,
    outputs: Sequence[Tensor],
    batches: Sequence[int],
    lowest: Mapping[str, float] | None = None,
) -> Scored:
    """Scores where all items of a split are judged together.

    Raises:
        TaskError: scores that are not one finite number per item.
    """
    targets = torch.cat([task.validation[i][1] for i in batches])
    main, more = _every(task, torch.cat(list(outputs)), targets, lowest or {})
    return Scored(main, more, tuple(batches), True)


def divergence(
    task: Task, run: Callable[..., Any], reference: Sequence[Tensor], batches: Sequence[int]
) -> float:
    """How far outputs moved: KL of the class distributions, else relative squared error."""
    found = []
    for i, old in zip(batches, reference, strict=True):
        with torch.no_grad():
            found.append(moved(task, call(run, task.validation[i][0]), old))
    return mean_move(found)


def moved(task: Task, output: Any, old: Tensor) -> tuple[float, float]:
    """How far one output moved, summed, and what to divide such sums by."""
    new = first_tensor(output).double()
    if task.outputs == "logits" and old.dim() == 2 and old.shape[1] > 1:
        # a class whose logit is -inf in both outputs adds 0, not NaN
        p, q = (x.log_softmax(-1).clamp_min(LOGIT_FLOOR) for x in (old, new))
        return float((p.exp() * (p - q)).sum()), float(old.shape[0])
    return float((new - old).square().sum()), float(old.square().sum())


def mean_move(found: Sequence[tuple[float, float]]) -> float:
    """The divergence over several batches."""
    return sum(x for x, _ in found) / max(sum(w for _, w in found), 1e-30)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a model's output.

    Raises:
        ValueError: there is none.
    """
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError("expected a model that returns a tensor, got none")
