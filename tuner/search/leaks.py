"""A plan is judged on items that nothing was fitted to: sets that share items are refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor

from attnpass.batch import Batch
from attnpass.errors import TaskError
from attnpass.fingerprint import batched_leaves, item_digests
from attnpass.task import Task
from attnpass.tuner.measure import split

log = logging.getLogger("attnpass")

FEW = 0.01
"""Share of the items that may repeat, as in data that was collected; above it is a leak."""


def refuse_leaks(task: Task, *, learns: bool) -> None:
    """Compare the items of a task's sets by their content, as many as its targets are.

    Where no tensor has as many rows as a batch has targets, batches are compared as a whole.
    ``learns``: whether forms are trained on ``Task.recovery``.

    Raises:
        TaskError: calibration or recovery share items with validation, or the part of it that
            selects plans with the part that judges them.
    """
    sizes = [length(y) for _, y in task.validation]
    pairs = zip(task.validation, sizes, strict=True)
    leaves = set.intersection(*(batched_leaves(batch, n or -1) for (batch, _), n in pairs))
    judged = [item_digests(batch, leaves) for batch, _ in task.validation]
    every = {x for batch in judged for x in batch}
    sets = {"calibration": task.calibration, **({"recovery": task.recovery} if learns else {})}
    for name, batches in sets.items():
        given = _items((batches[i] for i in range(len(batches))), leaves)
        _refuse(
            len(every & given),
            len(every),
            f"no item of Task.{name} in Task.validation",
            "leave them out of one of the two",
        )
    known = [n for n in sizes if n is not None]
    halves = split(known) if len(known) == len(sizes) else None
    if halves is None or halves.crossed:
        return
    selection, held_out = (
        {x for i in half for x in judged[i]} for half in (halves.selection, halves.held_out)
    )
    _refuse(
        len(selection & held_out),
        len(selection),
        "different items in Task.validation, of which the first select plans and the others judge",
        "leave repeated ones out",
    )


def length(target: object) -> int | None:
    """How many items a target is for; None where it does not say."""
    if isinstance(target, Tensor):
        return target.shape[0] if target.dim() else None
    return len(target) if hasattr(target, "__len__") else None


def _refuse(shared: int, all_of_them: int, expected: str, cure: str) -> None:
    """A leak is an error, a few repeated items are a warning."""
    if not shared:
        return
    told = f"expected {expected}, got {shared} of its {all_of_them}"
    if shared > FEW * all_of_them:
        raise TaskError(f"{told}: plans are judged on items that nothing was fitted to; {cure}")
    log.warning("%s; %s", told, cure)


def _items(batches: Iterable[Batch], leaves: set[int]) -> set[str]:
    return {x for batch in batches for x in item_digests(batch, leaves)}
