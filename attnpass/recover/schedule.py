"""How far a stage is, in steps or in seconds, and what follows from it: rates and batch order."""

from __future__ import annotations

import math
import time

import torch

from attnpass.recover.stage import Stage

WARM_UP = 0.05
"""Share of a stage's steps in which the learning rate rises."""

FORMS_FIRST = 0.15
"""Share of the local stage in which the forms' parameters learn alone."""


class Pace:
    """How far a stage is: by its number of steps, or by its budget of time where it has none.

    Args:
        steps: of the stage, or None. budget: seconds of the stage, unused with ``steps``.

    Attributes:
        first: seconds after the first step, of this run or of one it resumed from. That step
            captures the model: its time says nothing of the others.
    """

    def __init__(self, steps: int | None, budget: float) -> None:
        self.steps, self.budget, self.first = steps, budget, 0.0
        self._read_at = time.monotonic()

    def restart_clock(self) -> None:
        """Leave out the time since the clock was last read."""
        self._read_at = time.monotonic()

    def count(self, stage: Stage) -> None:
        """Add the time since the last call; estimate the number of steps that a budget holds."""
        now = time.monotonic()
        stage.seconds += now - self._read_at
        self._read_at = now
        if self.steps is None and stage.steps:
            if stage.steps == 1 or not self.first:
                self.first = stage.seconds
            each = (stage.seconds - self.first) / max(stage.steps - 1, 1)
            left = (self.budget - stage.seconds) / (each or self.first)
            stage.total = stage.steps + max(round(left), 0)

    def over(self, stage: Stage) -> bool:
        """Whether the steps, or the time, are used up."""
        if self.steps is not None:
            return stage.steps >= stage.total
        return stage.seconds >= self.budget

    def progress(self, stage: Stage) -> float:
        """How much of the stage is over after the next step, 0 to 1."""
        if self.steps is not None:
            return (stage.steps + 1) / stage.total
        if stage.steps < 2:
            return 0.0
        each = (stage.seconds - self.first) / (stage.steps - 1)
        left = max(self.budget - self.first, 1e-9)
        return min((stage.seconds - self.first + each) / left, 1.0)


def rate_factor(progress: float, delayed: bool) -> float:
    """Factor on the learning rate: a linear warm-up, then a cosine to 0.

    A ``delayed`` parameter starts its warm-up when the forms' parameters have learnt alone.
    """
    start = FORMS_FIRST if delayed else 0.0
    warm = min(max((progress - start) / WARM_UP, 0.0), 1.0)
    return warm * 0.5 * (1 + math.cos(math.pi * progress))


def batch_index(step: int, count: int, seed: int) -> int:
    """Which of ``count`` batches a step trains on: a new order every epoch, fixed by ``seed``."""
    epoch, position = divmod(step, count)
    generator = torch.Generator().manual_seed(seed * 7919 + epoch)
    return int(torch.randperm(count, generator=generator)[position])
