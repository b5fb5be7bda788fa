"""What the last stages of a run will take, so that the stages before leave it to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnpass.tuner.search.baseline import Baseline
from attnpass.tuner.search.budget import minutes
from attnpass.tuner.search.latencies import Latencies

COMPILE_S = 30.0
"""Seconds to compile and time one plan, where none was timed in this run."""

MARGIN = 1.3
"""How many times longer than foreseen the last stages may take."""


@dataclass(eq=False)
class Reserve:
    """The seconds that finalists take: each is compiled, timed, and scored on held-out items.

    Attributes:
        distilling: seconds of distillation that are still to come before them.
    """

    latencies: Latencies
    baseline: Baseline
    distilling: float = 0.0

    @property
    def per_plan(self) -> float:
        """Seconds per finalist, by the requests of this run so far."""
        timed = [seconds / plans for plans, seconds in self.latencies.asked[:4]]
        items = sum(self.baseline.sizes)
        held_out = self.baseline.seconds * len(self.baseline.held_out) / max(items, 1)
        return max(timed, default=COMPILE_S) + held_out

    def needed(self) -> float:
        """Seconds to keep for distillation, for two finalists or more, and the baseline."""
        return 0.0 if self._endless else self.distilling + MARGIN * 4 * self.per_plan

    def share(self, distilling: float) -> None:
        """Keep so many seconds for distillation, at most half of those left before the finalists.

        The other half is the search's: without a plan there is nothing to distil.
        """
        self.distilling = 0.0
        left = self.latencies.session.budget.left - self.needed()
        self.distilling = max(0.0, min(distilling, left / 2))

    def affordable(self) -> int:
        """How many finalists the rest of the budget can judge, one at least."""
        budget = self.latencies.session.budget
        if self._endless:
            return self.latencies.inspection.settings.limits["finalists"]
        return max(1, int(budget.left / MARGIN / self.per_plan) - 2)

    def outlook(self) -> str:
        """How long the rest of the run will take at most, in words."""
        settings = self.latencies.inspection.settings
        limits, distils = settings.limits, settings.recover == "distil"
        rest = limits["trials"] * self.baseline.seconds_selection
        rest += (limits["finalists"] + 2) * self.per_plan
        if distils:
            rest += settings.recover_budget
        budget = self.latencies.session.budget
        within = "" if self._endless else f" of {minutes(budget.left)} left"
        steps = settings.recover_steps if distils else 0
        beside = f", beside {steps} steps of distillation" if steps else ""
        return (
            f"the rest will take about {minutes(min(rest, budget.left))} at most{within}{beside}"
        )

    @property
    def _endless(self) -> bool:
        return math.isinf(self.latencies.session.budget.seconds)
