"""One plan of a search with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnpass.plan import Plan
from attnpass.tuner.measure.accuracy import Bound


@dataclass
class Candidate:
    """One plan and what is known of it.

    ``judged`` are the items that did not select it, where the set is cross-fitted; ``recovery``
    is what global distillation did, and the drop on the selection before it.
    """

    assignment: dict[str, str]
    plan: Plan
    cost: float = 0.0
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    judged: list[int] = field(default_factory=list)
    selection: Bound | None = None
    held_out: Bound | None = None
    latency: dict[str, Any] = field(default_factory=dict)
    recovery: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The candidate as plain JSON types."""
        return {
            "plan": self.plan.hash,
            "forms": self.assignment,
            "estimate_ms": self.cost,
            "selection": self.selection.as_dict() if self.selection else None,
            "held_out": self.held_out.as_dict() if self.held_out else None,
            "latency": self.latency,
            "recovery": self.recovery,
        }
