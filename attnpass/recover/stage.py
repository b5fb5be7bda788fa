"""The record of one stage of distillation, and the callback that follows its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Progress = Callable[[str, int, int, float], None]
"""Called after every step with the stage's name, the step, the number of steps that the stage
will have, and the loss. An exception that it raises ends the stage, which is saved first."""


@dataclass
class Stage:
    """Record of one stage of distillation. Its fields are stored in results and checkpoints.

    Attributes:
        name: ``local`` or ``global``.
        steps: number of steps done, of ``total``.
        seconds: time that they took, evaluations included.
        losses: mean training loss of the steps between two evaluations.
        looks: per evaluation the step and the mean loss on the selection.
        kept: per unit (``label|site``) the step whose values were kept, with a selection.
        best: per unit the loss of the values that were kept, on the selection; without a
            selection the training loss of the last step.
    """

    name: str
    steps: int = 0
    total: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The stage as plain JSON types."""
        return asdict(self)

    @classmethod
    def of(cls, value: dict[str, Any]) -> Stage:
        """The stage of plain JSON types."""
        return cls(**{**value, "looks": [(step, loss) for step, loss in value["looks"]]})
