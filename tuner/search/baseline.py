"""The unchanged model: its scores over all validation items, their split, and its outputs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attnpass import fingerprint
from attnpass.batch import call
from attnpass.errors import TaskError
from attnpass.task import Task
from attnpass.tuner.measure import (
    Scored,
    Split,
    answer,
    binary,
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
        metric: the name of the score.
        seconds: that scoring all items takes.
        more: scores of the selection and of the held-out items by each of ``Task.metrics``.
    """

    sizes: list[int]
    split: Split
    selection: Tensor
    held_out: Tensor
    reference: list[Tensor]
    canary: Canary
    canary_items: list[int]
    random: bool
    metric: str = ""
    seconds: float = 0.0
    more: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def worst(self) -> dict[str, float]:
        """By metric what a score that is not finite counts as: the least of the baseline's."""
        every = {self.metric: (self.selection, self.held_out), **self.more}
        return {m: min(float(x.min()) for x in parts) for m, parts in every.items()}

    @property
    def seconds_selection(self) -> float:
        """Seconds that scoring a plan on the selection takes."""
        return self.seconds * len(self.selection) / max(sum(self.sizes), 1)

    @property
    def scored(self) -> Tensor:
        """The scores of all items, each once."""
        parts = [self.selection] + ([] if self.split.crossed else [self.held_out])
        return torch.cat(parts)

    @property
    def reference_batches(self) -> list[int]:
        """The batches of ``reference``."""
        return list(self.split.selection[:REFERENCES])

    @property
    def seconds_reference(self) -> list[float]:
        """Seconds that each of the reference batches takes."""
        per_item = self.seconds / max(sum(self.sizes), 1)
        return [per_item * self.sizes[i] for i in self.reference_batches]

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
    start = time.perf_counter()
    with torch.no_grad():
        reference = [
            first_tensor(call(capture, task.validation[i][0])).double()
            for i in parts.selection[:REFERENCES]
        ]
    some = sum(row.sizes[i] for i in parts.selection[:REFERENCES])
    # as it was stored, so that a run that goes on has the same time for the same things
    seconds = row.seconds or (time.perf_counter() - start) * sum(row.sizes) / max(some, 1)
    selection, held_out = (
        torch.tensor(x, dtype=torch.float64) for x in (row.selection, row.held_out)
    )
    items = row.items(canary.batches)
    baseline = Baseline(
        row.sizes,
        parts,
        selection,
        held_out,
        reference,
        canary,
        items,
        row.random,
        task.metric,
        seconds,
        row.tensors,
    )
    total = baseline.scored
    session.progress.say(
        f"{task.metric} of the unchanged model: {total.mean():.4f} on {len(total)} items;"
        f" a drop of {limit:.2%} needs at least {needed(limit)} items to be proven, held out are"
        f" {len(held_out)}" + (" (cross-fitted)" if parts.crossed else "")
    )
    for remark in remarks(baseline):
        session.progress.say(remark, style="yellow")
    return baseline


FEW = 30
"""Fewer items than this prove next to nothing."""


def remarks(baseline: Baseline) -> list[str]:
    """What about the scores limits every conclusion from them: constant, few, or of any size."""
    found = []
    for name, parts in {"": (baseline.selection, baseline.held_out), **baseline.more}.items():
        metric = name or baseline.metric
        every = torch.cat(list(parts))
        low, high = float(every.min()), float(every.max())
        if low == high:
            found.append(f"{metric}: every item scores {low:g}, which tells no plan from another")
        elif not binary(every):
            found.append(
                f"{metric}: scores from {low:.4g} to {high:.4g}; bounds by Student's t hold as far"
                " as the items seen are like all others"
            )
    if len(baseline.scored) < FEW:
        found.append(f"{len(baseline.scored)} items are too few to prove any small drop")
    return found


def _measured(inspection: Inspection, session: Session) -> tuple[BaselineRow, Canary]:
    """The scores measured now and stored, with a canary and a second evaluation of it.

    Raises:
        TaskError: fewer than two items, or scores that are not one finite number per item.
    """
    task, capture, say = inspection.task, inspection.capture, session.progress.say
    with fingerprint.files_read() as read:
        sizes, selection, held_out, more, seconds = _score(inspection, session)
        if sum(sizes) < 2:
            raise TaskError(f"expected two validation items or more, got {sum(sizes)}")
        batches = canary_batches(task, sizes, split(sizes).selection)
        canary, again = (take(task, capture, batches) for _ in range(2))
    mark = uuid.uuid4().hex[:16]
    row = BaselineRow(sizes, selection, held_out, canary, False, mark, {}, more, seconds)
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


def _score(
    inspection: Inspection, session: Session
) -> tuple[list[int], list[float], list[float], dict[str, list[list[float]]], float]:
    """Items per batch, scores of the selection and of the held-out batches, those by metric.

    The last is how many seconds that takes, by the batches after the first, for which the model
    may be captured anew.
    """
    task, capture = inspection.task, inspection.capture
    every = range(len(task.validation))
    outputs, batches, ends = list[Tensor](), list[Scored](), list[float]()
    with session.progress.stage("baseline accuracy", len(every)) as step:
        for i in every:
            if task.pooled:
                outputs.append(answer(task, capture, i))
            else:
                batches.append(scores(task, capture, [i]))
            ends.append(time.perf_counter())
            step("")
    sizes = [len(task.validation[i][1]) if task.pooled else len(batches[i].main) for i in every]
    parts = split(sizes) if sum(sizes) else Split((), (), True)
    found = [
        pooled_scores(task, [outputs[i] for i in part], part)
        if task.pooled
        else _joined(task, [batches[i] for i in part])
        for part in (parts.selection, parts.held_out)
    ]
    more = {m: [x.more[m].tolist() for x in found] for m in task.metrics}
    selection, held_out = (x.main.tolist() for x in found)
    timed = sum(sizes[1:])
    seconds = (ends[-1] - ends[0]) * sum(sizes) / timed if timed else 0.0
    return sizes, selection, held_out, more, seconds


def _joined(task: Task, batches: list[Scored]) -> Scored:
    """The scores of several batches as one record."""
    none = [torch.zeros(0, dtype=torch.float64)]
    more = {m: torch.cat(none + [x.more[m] for x in batches]) for m in task.metrics}
    every = tuple(i for x in batches for i in x.batches)
    return Scored(torch.cat(none + [x.main for x in batches]), more, every, True)
