"""The canary: a few items are evaluated anew before stored scores are believed.

Soundness. Claim: stored scores are served only where this run would measure the same, as far as a
few items can tell. The conditions:

1. The scores and the outputs of the unchanged model on the canary's items are those stored with
   the baseline; so are the scores of the first plan whose scores are served.
2. The files that the task read when the baseline was measured hold the same bytes.
3. Two evaluations within the run that measured them gave the same scores and outputs. Random
   scores are never served.
4. Whatever rests on a baseline has the baseline's mark in its key: a baseline that is measured
   anew gets another mark, so that nothing else of the task is found (``Session.rest_on``).

Same means equal for scores of 0 and 1: the same machine with the same threads, which the key
holds, computes the same bits. Other scores and the outputs may differ by ``noise``, since some
kernels add in an order that changes.

Not covered: what no key sees (a variable whose name is made at run time, a server, the clock),
where it changes only items outside the canary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import call
from attnpass.task import Task, score_batch
from attnpass.tuner.measure import binary, first_tensor, pooled_scores

ITEMS = 8
"""Items that a canary has at least; whole batches, since another batch size rounds differently."""

MOST_NOISE = 1e-2
"""Relative difference that is never taken for noise."""


@dataclass(frozen=True)
class Canary:
    """Scores and outputs of the unchanged model on a few batches.

    Attributes:
        batches: which. scores: of their items. outputs: two numbers per batch, the norm of its
            outputs and their sum, each with another weight.
        noise: relative difference without a meaning.
    """

    batches: Sequence[int]
    scores: Sequence[float]
    outputs: Sequence[float]
    noise: float

    def as_dict(self) -> dict[str, Any]:
        """The canary as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Canary:
        """The canary of plain JSON types.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        batches, noise = [int(i) for i in value["batches"]], float(value["noise"])
        scores, outputs = ([float(x) for x in value[k]] for k in ("scores", "outputs"))
        if len(outputs) != 2 * len(batches):
            raise ValueError("expected two numbers per batch")
        if not 0 <= noise <= MOST_NOISE:
            raise ValueError(f"expected a noise of 0 to {MOST_NOISE}")
        return cls(batches, scores, outputs, noise)


def canary_batches(task: Task, sizes: Sequence[int], selection: Sequence[int]) -> list[int]:
    """Selection batches, evenly spread, two or more, of ``ITEMS`` items or more.

    All of them where the items of a split are judged together.
    """
    filled = [i for i in selection if sizes[i]]
    if task.pooled or len(filled) <= 2:
        return filled
    mean = sum(sizes[i] for i in filled) / len(filled)
    count = min(max(2, math.ceil(ITEMS / mean)), len(filled))
    return [filled[round(i * (len(filled) - 1) / (count - 1))] for i in range(count)]


def take(task: Task, run: Callable[..., Any], batches: Sequence[int]) -> Canary:
    """The canary of a model now.

    Raises:
        TaskError: scores that are not one finite number per item.
    """
    scores, outputs, tensors = list[float](), list[float](), list[Tensor]()
    for i in batches:
        arguments, target = task.validation[i]
        with torch.no_grad():
            output = call(run, arguments)
        tensors.append(first_tensor(output))
        # before the score, which may write into its argument
        outputs += _summary(tensors[-1])
        if not task.pooled:
            scores += score_batch(task, output, target).tolist()
    if task.pooled:
        scores = pooled_scores(task, tensors, batches).main.tolist()
    kinds = [torch.finfo(x.dtype).eps for x in tensors if x.is_floating_point()]
    return Canary(batches, scores, outputs, min(32 * max(kinds, default=0.0), MOST_NOISE))


def _summary(output: Tensor) -> list[float]:
    """The norm of outputs, and their sum with weights between 0 and 1, no two of which agree."""
    values = output.detach().double().cpu().nan_to_num().flatten()
    weights = (torch.arange(len(values), dtype=torch.float64) * 0.6180339887498949) % 1
    return [float(values.norm()), float((values * weights).sum())]


def difference(stored: Canary, new: Canary, items: Sequence[int]) -> str:
    """The first score or output that is not reproduced, ``""`` where all are.

    ``items`` are the numbers of the items in the validation set.
    """
    found = score_difference(stored.scores, new.scores, items, new.noise)
    if found or stored.batches != new.batches:
        return found or "other batches"
    for i, batch in enumerate(stored.batches):
        old, now = (torch.tensor(x.outputs[2 * i : 2 * i + 2]).double() for x in (stored, new))
        if not bool(((old - now).abs() <= new.noise * old[0]).all()):
            return f"outputs of batch {batch}"
    return ""


def score_difference(
    old: Sequence[float], new: Sequence[float], items: Sequence[int], noise: float
) -> str:
    """The first score that is another one, ``""`` where all are the same."""
    if len(old) != len(new):
        return f"{len(new)} scores, stored {len(old)}"
    exact = binary(torch.tensor([*old, *new]))
    allowed = 0.0 if exact else noise * max(map(abs, [*old, *new]), default=0.0)
    for item, before, now in zip(items, old, new, strict=True):
        if not abs(before - now) <= allowed:
            return f"item {item}: {now:.4g}, stored {before:.4g}"
    return ""
