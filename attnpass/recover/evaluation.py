"""Losses on the selection: they decide which values a unit keeps and when a stage ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from attnpass.batch import Batch
from attnpass.recover.objective import Objective, mean_losses
from attnpass.recover.stage import Stage
from attnpass.recover.units import UnitKey

PER_STAGE = 10
"""Number of evaluations of a stage, beside the one before its first step."""

PATIENCE = 4
"""Number of evaluations that end a stage, none of them better than the best or than the one before
it."""

TIME_SHARE = 0.02
"""Share of a budget of time that one evaluation may take; it takes at least one batch."""


class Evaluation:
    """Evaluates an objective on the selection and keeps every unit's best values.

    Args:
        seconds: that one evaluation may take; infinite where steps are counted.

    Attributes:
        best: per unit the least loss so far. values: its parameters' values then.
        stale: number of evaluations without improvement.
        batches: number of selection batches taken each time, 0 before the first time: losses of
            other batches could not be compared.
    """

    def __init__(self, objective: Objective, seconds: float) -> None:
        self.objective, self.seconds = objective, seconds
        self.best: dict[UnitKey, float] = {}
        self.values: dict[UnitKey, list[Tensor]] = {}
        self.stale = self.batches = 0

    @property
    def patience_is_over(self) -> bool:
        """Whether the stage should end."""
        return self.stale >= PATIENCE

    def evaluate(
        self,
        selection: Sequence[Batch],
        stage: Stage,
        conditions: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """Evaluate once; the loss, and the units that are at their best, go into ``stage``.

        ``conditions`` gives the random seed and the precision of the n-th batch.
        """
        losses = self._losses(selection, conditions)
        mean = sum(losses.values()) / max(len(losses), 1)
        # a high rate may cost what the start had; while it comes back, nothing is stale
        falls = bool(stage.looks) and mean < stage.looks[-1][1]
        self.stale += not falls and 2 * stage.steps >= stage.total > 0
        if math.isfinite(mean):
            stage.looks.append((stage.steps, mean))
        for key, loss in losses.items():
            if loss < self.best.get(key, math.inf):
                self.stale, self.best[key] = 0, loss
                parameters = self.objective.units[key].parameters
                self.values[key] = [p.detach().clone() for p in parameters]
                stage.kept["|".join(key)] = stage.steps

    def _losses(
        self,
        selection: Sequence[Batch],
        conditions: Callable[[int], AbstractContextManager[None]],
    ) -> dict[UnitKey, float]:
        """Per unit the mean loss over the batches; the first time as many as time allows."""
        sums: dict[UnitKey, float] = {}
        if not self.batches and math.isfinite(self.seconds):
            with conditions(1):  # captures the model: its time says nothing of the others
                mean_losses(self.objective, selection[0])
        start, count = time.monotonic(), self.batches or len(selection)
        for number in range(1, count + 1):
            with conditions(number):
                losses = mean_losses(self.objective, selection[number - 1])
            for key, loss in losses.items():
                sums[key] = sums.get(key, 0.0) + loss
            if time.monotonic() - start > self.seconds and not self.batches:
                count = number
                break
        self.batches = count
        return {key: total / count for key, total in sums.items()}

    def restore_best(self) -> None:
        """Give every unit's parameters the values at which its loss was least."""
        with torch.no_grad():
            for key, values in self.values.items():
                parameters = self.objective.units[key].parameters
                for p, value in zip(parameters, values, strict=True):
                    p.copy_(value)
