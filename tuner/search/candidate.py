"""One plan of a search with everything that was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnpass.plan import Plan
from attnpass.tuner.measure import Bound
from attnpass.tuner.search.plan_row import PlanLatency, PlanRow, Recovery
from attnpass.tuner.search.settings import REJECTED


@dataclass(frozen=True, eq=False)
class Candidate:
    """One plan of a search.

    Attributes:
        assignment: choice per site. plan: made of these choices.
        cost: estimated milliseconds. scores: per item of the selection, in part where scoring was
            stopped early. selection: the bound on the drop that they give.
        divergence: how far the plan moves the first outputs; ``REJECTED`` where that was not
            measured.
        judged: where the set is cross-fitted, the items that did not select the plan.
        latency, held_out: of finalists. recovery: of plans that were distilled globally.
        more, others, held_others: scores and bounds by each of ``Task.metrics``. limits: allowed
            drop by metric, that of ``Task.score`` under ``""``.
    """

    assignment: dict[str, str]
    plan: Plan
    cost: float = 0.0
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    selection: Bound | None = None
    divergence: float = REJECTED
    judged: tuple[int, ...] = ()
    held_out: Bound | None = None
    latency: PlanLatency | None = None
    recovery: Recovery | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Bound] = field(default_factory=dict)
    held_others: Mapping[str, Bound] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=lambda: {"": 0.0})

    @property
    def excess(self) -> float:
        """How far the bound on the drop is over what is allowed, by the metric that is worst."""
        assert self.selection is not None
        found = [self.selection.upper - self.limits[""]]
        return max(found + [x.upper - self.limits[m] for m, x in self.others.items()])

    @property
    def row(self) -> PlanRow:
        """The candidate as the result shows it."""
        return PlanRow(
            plan=self.plan.hash,
            forms=self.assignment,
            estimate_ms=self.cost,
            selection=self.selection,
            held_out=self.held_out,
            divergence=self.divergence,
            latency=self.latency,
            recovery=self.recovery,
            others=dict(self.held_others or self.others),
        )

    def as_dict(self) -> dict[str, Any]:
        """The candidate as plain JSON types."""
        return self.row.as_dict()
