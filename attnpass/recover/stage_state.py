"""The state of a stage between two steps, as plain values and named tensors for a checkpoint.

The names of the values and tensors are those of files written since the first release: a file of
an older version must resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StageState:
    """All that a trainer needs to go on after an interruption.

    Units and parameters are known by their position.

    Attributes:
        stage: the record so far, as plain JSON types (``Stage.as_dict``).
        parameters: their values. optimiser: per parameter the optimiser's state by name.
        best: per unit the least loss on the selection so far, None where there is none.
        best_values: by unit, the values of its parameters at that loss.
        last: per unit the loss of the last step, None where there is none.
        losses: of the steps since the last evaluation.
        stale: number of evaluations without improvement. looked: step of the last evaluation.
        watched: number of selection batches that every evaluation takes, 0 before the first.
        first: seconds after the first step, see ``Pace``.
        scale: factor on a float16 model's loss; None in files that have no such value.
        sizes: per parameter the size that its learning rate is relative to.
        names: of the parameters, ``label|site|name``; None in files of older versions, whose
            parameters are in the order in which the plan held them.
    """

    stage: dict[str, Any]
    parameters: list[Tensor]
    optimiser: list[dict[str, Tensor]]
    best: list[float | None]
    best_values: dict[int, list[Tensor]]
    last: list[float | None]
    losses: list[float]
    stale: int
    looked: int
    watched: int
    first: float
    scale: float | None
    sizes: list[float]
    names: list[str] | None = None

    def header(self) -> dict[str, Any]:
        """The values that are no tensors, as plain JSON types."""
        return {
            "stage": self.stage,
            "best": self.best,
            "stale": self.stale,
            "looked": self.looked,
            "watched": self.watched,
            "first": self.first,
            "last": self.last,
            "losses": self.losses,
            "scale": self.scale,
            "sizes": self.sizes,
            "names": self.names,
        }

    def tensors(self) -> dict[str, Tensor]:
        """``value|i`` and the optimiser's ``name|i`` of parameter i, ``best|unit|i`` of a unit."""
        found = {f"value|{i}": p for i, p in enumerate(self.parameters)}
        for i, state in enumerate(self.optimiser):
            found |= {f"{name}|{i}": value for name, value in state.items()}
        for unit, values in self.best_values.items():
            found |= {f"best|{unit}|{i}": value for i, value in enumerate(values)}
        return found

    def in_order(self, places: Sequence[Sequence[int]]) -> StageState:
        """The state with each unit's parameters taken from these places among them."""
        at, first = list[int](), 0
        for unit in places:
            at += [first + place for place in unit]
            first += len(unit)
        return replace(
            self,
            parameters=[self.parameters[i] for i in at],
            optimiser=[self.optimiser[i] for i in at],
            sizes=[self.sizes[i] for i in at],
            best_values={
                unit: [values[place] for place in places[unit]]
                for unit, values in self.best_values.items()
            },
        )

    @classmethod
    def of(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StageState:
        """The state of a checkpoint's header and tensors.

        Raises:
            KeyError: a value is missing.
        """
        rows: dict[int, dict[str, Tensor]] = {}
        best: dict[int, dict[int, Tensor]] = {}
        for key, value in tensors.items():
            kind, *numbers = key.split("|")
            if kind == "best":
                best.setdefault(int(numbers[0]), {})[int(numbers[1])] = value
            else:
                rows.setdefault(int(numbers[0]), {})[kind] = value
        every = [rows[i] for i in range(len(rows))]
        return cls(
            stage=header["stage"],
            parameters=[row.pop("value") for row in every],
            optimiser=every,
            best=header["best"],
            best_values={
                unit: [values[i] for i in range(len(values))] for unit, values in best.items()
            },
            last=header["last"],
            losses=list(header["losses"]),
            stale=header["stale"],
            looked=header["looked"],
            watched=header["watched"],
            first=header["first"],
            scale=header.get("scale"),
            sizes=header["sizes"],
            names=header.get("names"),
        )
