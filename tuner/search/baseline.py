"""The unchanged model: its scores over all validation items, their split, and its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import call
from attnpass.errors import TaskError
from attnpass.task import Task
from attnpass.tuner.measure import (
    Split,
    answer,
    first_tensor,
    needed,
    pooled_scores,
    scores,
    split,
)
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.session import Session

REFERENCES = 4
"""Selection batches on which the divergence of plans is measured."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """The scores that plans are paired with.

    Attributes:
        sizes: items per validation batch. split: batches that select and that judge.
        selection, held_out: scores ``[items]`` of both, in float64.
        reference: outputs of the first selection batches, in float64.
    """

    sizes: list[int]
    split: Split
    selection: Tensor
    held_out: Tensor
    reference: list[Tensor]

    @property
    def scored(self) -> Tensor:
        """The scores of all items, each once."""
        parts = [self.selection] + ([] if self.split.crossed else [self.held_out])
        return torch.cat(parts)

    @property
    def reference_batches(self) -> list[int]:
        """The batches of ``reference``."""
        return list(self.split.selection[:REFERENCES])

    def half(self, which: int) -> list[int]:
        """Positions of the items of every other batch; where there is one batch, every other.

        ``which`` is 0 or 1.
        """
        owner = [i for i, size in enumerate(x for x in self.sizes if x) for _ in range(size)]
        owner = owner if owner[-1] else list(range(len(owner)))
        return [position for position, batch in enumerate(owner) if batch % 2 == which]


def measure_baseline(inspection: Inspection, session: Session) -> Baseline:
    """Scores of the unchanged model, from the store or measured now, and its first outputs.

    Raises:
        TaskError: fewer than two items, or scores that are not one finite number per item.
    """
    task, capture, limit = inspection.task, inspection.capture, inspection.settings.max_drop
    value = session.measured(
        "accuracy",
        "baseline scores",
        inspection.context,
        lambda: _score(inspection, session),
        lambda value: _fits(value, len(task.validation)),
    )
    sizes = value["sizes"]
    if sum(sizes) < 2:
        raise TaskError(f"expected two validation items or more, got {sum(sizes)}")
    parts = split(sizes)
    with torch.no_grad():
        reference = [
            first_tensor(call(capture, task.validation[i][0])).double()
            for i in parts.selection[:REFERENCES]
        ]
    selection, held_out = (
        torch.tensor(value[name], dtype=torch.float64) for name in ("selection", "held_out")
    )
    baseline = Baseline(sizes, parts, selection, held_out, reference)
    total = baseline.scored
    session.progress.say(
        f"{task.metric} of the unchanged model: {total.mean():.4f} on {len(total)} items;"
        f" a drop of {limit:.2%} needs at least {needed(limit)} items to be proven, held out are"
        f" {len(held_out)}" + (" (cross-fitted)" if parts.crossed else "")
    )
    return baseline


def _fits(value: dict[str, Any], batches: int) -> bool:
    """Whether stored scores are of as many batches, and of all their items."""
    sizes = value.get("sizes", [])
    if len(sizes) != batches or sum(sizes) < 1:
        return False
    parts = split(sizes)
    return all(
        len(value[name]) == sum(sizes[i] for i in chosen)
        for name, chosen in (("selection", parts.selection), ("held_out", parts.held_out))
    )


def _score(inspection: Inspection, session: Session) -> dict[str, Any]:
    """Items per batch, and scores of the selection and of the held-out batches."""
    task, capture = inspection.task, inspection.capture
    every = range(len(task.validation))
    batches: list[Tensor] = []
    with session.progress.stage("baseline accuracy", len(every)) as step:
        for i in every:
            pooled = task.pooled
            batches.append(answer(task, capture, i) if pooled else scores(task, capture, [i])[0])
            step("")
    sizes = [len(task.validation[i][1]) if task.pooled else len(batches[i]) for i in every]
    parts = split(sizes) if sum(sizes) else Split((), (), True)
    return {
        "sizes": sizes,
        "selection": _joined(task, batches, parts.selection),
        "held_out": _joined(task, batches, parts.held_out),
    }


def _joined(task: Task, batches: list[Tensor], chosen: tuple[int, ...]) -> list[float]:
    """Scores of the chosen batches; ``batches`` holds scores, or outputs of a pooled task."""
    taken = [batches[i] for i in chosen]
    if task.pooled:
        return list(pooled_scores(task, taken, chosen).tolist())
    return list(torch.cat(taken).tolist()) if taken else []
