"""The unchanged model: its scores over all validation items, their split, and its outputs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnpass import fingerprint
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
from attnpass.tuner.search.baseline_row import SUBJECT, BaselineRow, find_baseline
from attnpass.tuner.search.canary import (
    Canary,
    canary_batches,
    difference,
    score_difference,
    take,
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
        canary: scores and outputs on a few selection batches, taken in this run.
        canary_items: the positions of their items among those of the selection.
        random: whether two evaluations gave two results: nothing stored is served.
    """

    sizes: list[int]
    split: Split
    selection: Tensor
    held_out: Tensor
    reference: list[Tensor]
    canary: Canary
    canary_items: list[int]
    random: bool

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
    row, canary = find_baseline(inspection, session) or _measured(inspection, session)
    session.rest_on(row.mark)
    parts = split(row.sizes)
    with torch.no_grad():
        reference = [
            first_tensor(call(capture, task.validation[i][0])).double()
            for i in parts.selection[:REFERENCES]
        ]
    selection, held_out = (
        torch.tensor(x, dtype=torch.float64) for x in (row.selection, row.held_out)
    )
    items = row.items(canary.batches)
    baseline = Baseline(
        row.sizes, parts, selection, held_out, reference, canary, items, row.random
    )
    total = baseline.scored
    session.progress.say(
        f"{task.metric} of the unchanged model: {total.mean():.4f} on {len(total)} items;"
        f" a drop of {limit:.2%} needs at least {needed(limit)} items to be proven, held out are"
        f" {len(held_out)}" + (" (cross-fitted)" if parts.crossed else "")
    )
    return baseline


def _measured(inspection: Inspection, session: Session) -> tuple[BaselineRow, Canary]:
    """The scores measured now and stored, with a canary and a second evaluation of it.

    Raises:
        TaskError: fewer than two items, or scores that are not one finite number per item.
    """
    task, capture, say = inspection.task, inspection.capture, session.progress.say
    with fingerprint.files_read() as read:
        sizes, selection, held_out = _score(inspection, session)
        if sum(sizes) < 2:
            raise TaskError(f"expected two validation items or more, got {sum(sizes)}")
        batches = canary_batches(task, sizes, split(sizes).selection)
        canary, again = (take(task, capture, batches) for _ in range(2))
    row = BaselineRow(sizes, selection, held_out, canary, False, uuid.uuid4().hex[:16])
    items = row.items(batches)
    differs = score_difference([selection[i] for i in items], canary.scores, items, canary.noise)
    differs = differs or difference(canary, again, items)
    row = replace(
        row, random=bool(differs), read=fingerprint.digests_of({*inspection.read, *read})
    )
    if row.random:
        differs = differs.replace("stored", "before")
        say(f"scores of this task are random ({differs}): none will be reused", style="yellow")
    if inspection.opaque:
        say(
            f"{', '.join(inspection.opaque)} in this task: such objects show no content,"
            " so that no other run can reuse what is measured now",
            style="yellow",
        )
    session.keep("accuracy", SUBJECT, inspection.context, row.as_dict())
    return row, canary


def _score(inspection: Inspection, session: Session) -> tuple[list[int], list[float], list[float]]:
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
    selection, held_out = (_joined(task, batches, x) for x in (parts.selection, parts.held_out))
    return sizes, selection, held_out


def _joined(task: Task, batches: list[Tensor], chosen: tuple[int, ...]) -> list[float]:
    """Scores of the chosen batches; ``batches`` holds scores, or outputs of a pooled task."""
    taken = [batches[i] for i in chosen]
    if task.pooled:
        return list(pooled_scores(task, taken, chosen).tolist())
    return list(torch.cat(taken).tolist()) if taken else []
