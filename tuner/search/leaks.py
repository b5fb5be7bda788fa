"""A plan is judged on items that nothing was fitted to: sets that share an item are refused."""

from __future__ import annotations

from collections.abc import Iterable

from attnpass.batch import Batch
from attnpass.errors import TaskError
from attnpass.fingerprint import item_digests
from attnpass.task import Task
from attnpass.tuner.measure import split


def refuse_leaks(task: Task, *, learns: bool) -> None:
    """Compare the items of a task's sets by their content.

    ``learns``: whether forms are trained on ``Task.recovery``.

    Raises:
        TaskError: calibration or recovery share an item with validation, or the part of it that
            selects plans with the part that judges them.
    """
    judged = [item_digests(batch) for batch, _ in task.validation]
    every = {x for batch in judged for x in batch}
    sets = {"calibration": task.calibration, **({"recovery": task.recovery} if learns else {})}
    for name, batches in sets.items():
        shared = every & _items(batches[i] for i in range(len(batches)))
        if shared:
            raise TaskError(
                f"expected no item of Task.{name} in Task.validation, got {len(shared)} of its"
                f" {len(every)}: plans are judged on items that nothing was fitted to; leave them"
                " out of one of the two"
            )
    sizes = [len(y) for _, y in task.validation if hasattr(y, "__len__")]
    halves = split(sizes)
    if halves.crossed or len(sizes) < len(task.validation):
        return
    selection, held_out = (
        {x for i in half for x in judged[i]} for half in (halves.selection, halves.held_out)
    )
    if selection & held_out:
        raise TaskError(
            f"expected different items in Task.validation, got {len(selection & held_out)} both"
            f" among the first {len(selection)}, which select plans, and among the others, which"
            " judge them; leave repeated items out"
        )


def _items(batches: Iterable[Batch]) -> set[str]:
    return {x for batch in batches for x in item_digests(batch)}
