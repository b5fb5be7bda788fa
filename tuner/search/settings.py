"""The settings of a run, and the choices that a site may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from attnpass.errors import OptionError

REJECTED = 1e3
"""Divergence that stands for a plan whose scoring was stopped early, or that is not finite."""

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("sigmoid", {}),
    "relu": ("relu", {}),
    "hydra": ("hydra", {}),
    "skipat r=0": ("skipat", {"r": 0.0}),
    "skipat r=0.5": ("skipat", {"r": 0.5, "kernel": 3}),
    "skipat r=1": ("skipat", {"r": 1.0, "kernel": 5}),
}
"""The choices that a site may take, by name: form and options. ``softmax`` is always another."""

USUAL = tuple(c for c in CHOICES if c != "skipat r=1")
"""The choices that a run considers where none are named."""

EFFORT = {
    "quick": {"trials": 32, "rounds": 30, "finalists": 4},
    "full": {"trials": 200, "rounds": 80, "finalists": 8},
}


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        task: import path. max_drop: allowed drop of the mean score, as a fraction of one item.
        effort: ``quick`` or ``full``. trials: plans whose accuracy the search may measure.
        forms: choices to consider. seed: of the sampler. inner, mode: of the inner compiler.
        timeout: seconds that one compile-and-time request may take.
        load_timeout: seconds that the task may take to load, 0 for any number.
        refresh: measure again what is stored.
        recover: ``calibrate``, or ``distil`` too. recover_budget: seconds that distilling may take
            in all. recover_rank: of the changes to the weights; ``None`` full, 0 none.
    """

    task: str
    max_drop: float = 0.01
    effort: str = "quick"
    trials: int = 0
    forms: tuple[str, ...] = USUAL
    seed: int = 0
    inner: str = "inductor"
    mode: str | None = None
    timeout: float = 900.0
    load_timeout: float = 300.0
    refresh: bool = False
    recover: str = "calibrate"
    recover_budget: float = 300.0
    recover_rank: int | None = None

    def __post_init__(self) -> None:
        if self.recover not in ("calibrate", "distil"):
            raise OptionError(f"expected to recover by calibrate or distil, got {self.recover!r}")
        if not 0 < self.recover_budget < math.inf:
            raise OptionError(f"expected a recover-budget > 0, got {self.recover_budget:g} s")
        if self.recover_rank is not None and self.recover_rank < 0:
            raise OptionError(f"expected a recover-rank >= 0, got {self.recover_rank}")
        if self.trials < 0:
            raise OptionError(f"expected trials >= 0, got {self.trials}")
        if self.effort not in EFFORT:
            raise OptionError(f"expected effort of {', '.join(EFFORT)}, got {self.effort!r}")
        unknown = [f for f in self.forms if f not in CHOICES]
        if unknown or not self.forms:
            raise OptionError(f"expected forms of {', '.join(CHOICES)}, got {', '.join(unknown)}")
        if not (self.timeout > 0 and self.load_timeout >= 0):
            raise OptionError(
                f"expected timeout > 0 and load-timeout >= 0, got {self.timeout:g} and"
                f" {self.load_timeout:g}"
            )
        if not 0 <= self.max_drop < 1:
            raise OptionError(f"expected max-drop in 0..1, got {self.max_drop}")

    @property
    def limits(self) -> dict[str, int]:
        """Trials, rounds and finalists of the effort."""
        return {**EFFORT[self.effort], **({"trials": self.trials} if self.trials else {})}
