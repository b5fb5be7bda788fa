"""The scores of the unchanged model as a row of the database, and whether they may be served."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnpass import fingerprint
from attnpass.task import Task
from attnpass.tuner.measure import split
from attnpass.tuner.search.canary import Canary, canary_batches, difference, take
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.session import Session

SUBJECT = "baseline scores"


@dataclass(frozen=True)
class BaselineRow:
    """The scores of the unchanged model.

    Attributes:
        sizes: items per validation batch. selection, held_out: scores of both parts of the set.
        canary: scores and outputs on a few selection batches.
        random: whether a second evaluation gave other scores.
        mark: that of this measurement: whatever is measured beside it has it in its key.
        read: digests of the files that loading and judging the task read, by path.
        more: scores of both parts by each of ``Task.metrics``.
        seconds: that scoring all items took, 0 where that is not known.
    """

    sizes: list[int]
    selection: list[float]
    held_out: list[float]
    canary: Canary
    random: bool
    mark: str
    read: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, list[list[float]]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``more`` as tensors of float64."""
        return {
            m: (torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
            for m, (a, b) in self.more.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        return {**vars(self), "canary": self.canary.as_dict(), "read": dict(self.read)} | {
            "more": dict(self.more)
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BaselineRow:
        """The row of plain JSON types.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it is not complete, or damaged.
        """
        sizes = [int(n) for n in value["sizes"]]
        selection, held_out = ([float(x) for x in value[k]] for k in ("selection", "held_out"))
        canary, parts = Canary.from_dict(value["canary"]), split(sizes)
        wanted = [parts.selection, parts.held_out, canary.batches]
        lengths = [sum(sizes[i] for i in batches) for batches in wanted]
        if lengths != [len(selection), len(held_out), len(canary.scores)]:
            raise ValueError("expected one score per item")
        more = {m: [list(map(float, x)) for x in xs] for m, xs in value.get("more", {}).items()}
        if any([len(x) for x in xs] != lengths[:2] for xs in more.values()):
            raise ValueError("expected one score per item of each metric")
        random, mark, read = bool(value["random"]), str(value["mark"]), dict(value["read"])
        seconds = float(value.get("seconds", 0.0))
        if not 0 <= seconds < math.inf:
            raise ValueError("expected seconds of 0 or more")
        return cls(sizes, selection, held_out, canary, random, mark, read, more, seconds)

    def items(self, batches: Sequence[int]) -> list[int]:
        """The numbers of the items of some batches in the set.

        For batches of the selection, which begins the set, also their positions in its scores.
        """
        return [sum(self.sizes[:i]) + k for i in batches for k in range(self.sizes[i])]


def find_baseline(inspection: Inspection, session: Session) -> tuple[BaselineRow, Canary] | None:
    """The stored row and a canary of now that agrees; None, with a reason, where none does.

    Raises:
        KeyboardInterrupt: the run is to stop.
    """
    session.rest_on("")
    value = session.find(
        "accuracy", SUBJECT, inspection.context, fits=lambda x: _fits(x, inspection.task)
    )
    if value is None:
        return None
    row = BaselineRow.from_dict(value)
    changed = fingerprint.changed_file(row.read)
    if row.random:
        why = "scores of this task are random"
    elif changed:
        why = f"{changed}, which this task reads, has changed"
    else:
        now = take(inspection.task, inspection.capture, row.canary.batches)
        differs = difference(row.canary, now, row.items(row.canary.batches))
        if not differs:
            return row, now
        why = f"stored scores of this task are not reproduced ({differs})"
    session.progress.say(f"{why}; measured anew", style="yellow")
    return None


def _fits(value: Mapping[str, Any], task: Task) -> bool:
    """Whether a stored row is complete, of as many batches, and has the canary of this task."""
    try:
        row = BaselineRow.from_dict(value)
    except (KeyError, TypeError, ValueError, IndexError):
        return False
    if row.more.keys() != task.metrics.keys():
        return False
    if len(row.sizes) != len(task.validation) or min(row.sizes) < 0 or sum(row.sizes) < 2:
        return False
    return row.canary.batches == canary_batches(task, row.sizes, split(row.sizes).selection)
