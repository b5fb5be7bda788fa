"""The settings of a run: what the user asks for, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnpass.errors import OptionError
from attnpass.tuner.search.menu import FULL, USUAL, menu
from attnpass.tuner.search.plan_row import PlanLatency

REJECTED = 1e3
"""Divergence that stands for a plan whose scoring was stopped early, or that is not finite."""

EFFORT = {
    "quick": {"trials": 32, "rounds": 30, "finalists": 4, "tiles": 8, "seconds": 60},
    "full": {"trials": 200, "rounds": 80, "finalists": 8, "tiles": 24, "seconds": 300},
}
"""Of each effort: plans that the search scores, most rounds of a timing, plans that are judged on
held-out items, tiles that are tried per shape, and seconds after which a timing ends."""

RECOVER_S = 300.0
"""Seconds for distilling where neither they nor a budget of the run are given."""

OBJECTIVES = ("inference", "train")
"""What is timed: a call without gradients, or a call with its backward."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        task: import path. max_drop: allowed drop of the mean score, as a fraction of one item.
        effort: ``quick`` or ``full``. trials: plans whose accuracy the search may measure, 0 by
            effort. tiles: tiles to try per attention shape; None by effort, 0 none.
        forms: choices to consider, none of them by effort. seed: of the sampler.
        objective: of ``OBJECTIVES``. max_ms, max_p95_ms, max_memory_mb: most that a plan may take:
            the median and the 95th percentile of its latency in milliseconds, and peak memory in
            MiB beyond what the model holds; 0 for any.
        inner, mode: of the inner compiler. budget: seconds that the run may take, 0 for any
            number.
        timeout: seconds that one compile-and-time request may take.
        load_timeout: seconds that the task may take to load, 0 for any number.
        refresh: measure again what is stored.
        recover: ``calibrate``, or ``distil`` too. recover_budget: seconds that distilling may take
            in all, 0 for half of the budget, or five minutes where there is none. recover_steps:
            of the optimiser in all, in place of both budgets: distilling is then repeatable; 0
            where time counts. recover_rank: of the changes to the weights; ``None`` full, 0 none.
        devices: that time plans, e.g. ``cuda:0,cuda:1``; with ``ray`` a part of the description
            of the workers to use. ray: address of a cluster. Both empty: one process here.
    """

    task: str
    max_drop: float = 0.01
    effort: str = "quick"
    trials: int = 0
    tiles: int | None = None
    forms: tuple[str, ...] = ()
    seed: int = 0
    objective: str = "inference"
    max_ms: float = 0.0
    max_p95_ms: float = 0.0
    max_memory_mb: float = 0.0
    inner: str = "inductor"
    mode: str | None = None
    budget: float = 0.0
    timeout: float = 900.0
    load_timeout: float = 300.0
    refresh: bool = False
    recover: str = "calibrate"
    recover_budget: float = 0.0
    recover_steps: int = 0
    recover_rank: int | None = None
    devices: str = ""
    ray: str = ""

    def __post_init__(self) -> None:
        if self.recover not in ("calibrate", "distil"):
            raise OptionError(f"expected to recover by calibrate or distil, got {self.recover!r}")
        if self.recover_rank is not None and self.recover_rank < 0:
            raise OptionError(f"expected a recover-rank >= 0, got {self.recover_rank}")
        if self.recover_steps < 0:
            raise OptionError(f"expected recover-steps >= 0, got {self.recover_steps}")
        if self.recover_steps and (self.budget or self.recover_budget):
            raise OptionError(
                "expected recover-steps without budget and recover-budget: so many steps take as"
                " long as they take"
            )
        if self.trials < 0:
            raise OptionError(f"expected trials >= 0, got {self.trials}")
        if self.tiles is not None and self.tiles < 0:
            raise OptionError(f"expected tiles >= 0, got {self.tiles}")
        if self.effort not in EFFORT:
            raise OptionError(f"expected effort of {', '.join(EFFORT)}, got {self.effort!r}")
        if self.objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise OptionError(f"expected objective of {known}, got {self.objective!r}")
        for name in ("budget", "recover_budget", "max_ms", "max_p95_ms", "max_memory_mb"):
            if not 0 <= getattr(self, name) < math.inf:
                option, given = name.replace("_", "-"), getattr(self, name)
                raise OptionError(f"expected {option} >= 0, got {given:g}")
        if not (self.timeout > 0 and self.load_timeout >= 0):
            raise OptionError(
                f"expected timeout > 0 and load-timeout >= 0, got {self.timeout:g} and"
                f" {self.load_timeout:g}"
            )
        if not 0 <= self.max_drop < 1:
            raise OptionError(f"expected max-drop in 0..1, got {self.max_drop}")
        if not (self.recover_budget or self.recover_steps):
            object.__setattr__(self, "recover_budget", self.budget / 2 or RECOVER_S)
        asked = self.forms or (USUAL if self.effort == "quick" else FULL)
        object.__setattr__(self, "forms", menu(asked))

    def allows(self, latency: PlanLatency) -> bool:
        """Whether a finalist keeps the limits on time and memory, as far as these are known."""
        found = (latency.ms, latency.p95_ms, latency.peak_mib)
        most = (self.max_ms, self.max_p95_ms, self.max_memory_mb)
        return all(not m or x is None or x <= m for x, m in zip(found, most, strict=True))

    @property
    def recover_amount(self) -> float:
        """Seconds of distilling in all, or steps where they are given (``recover_steps``)."""
        return self.recover_steps or self.recover_budget

    @property
    def limits(self) -> dict[str, int]:
        """Trials, rounds, finalists and tiles of the effort, or as they were asked for."""
        given = {"trials": self.trials or None, "tiles": self.tiles}
        return {**EFFORT[self.effort], **{k: v for k, v in given.items() if v is not None}}
