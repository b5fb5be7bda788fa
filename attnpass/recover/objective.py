"""The protocol between the trainer and a loss, and the evaluation of one without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from attnpass.batch import Batch
from attnpass.recover.units import Unit, UnitKey


class Objective(Protocol):
    """A loss as the trainer needs it: ``LocalLoss`` and ``GlobalLoss`` are two.

    Attributes:
        name: of the stage that it trains.
        share: of the options' learning rate that it is trained at.
        units: the parameters that it trains.
        dtypes: of the model's floating parameters.
    """

    name: str
    share: float
    units: dict[UnitKey, Unit]
    dtypes: set[torch.dtype]

    @property
    def recompute(self) -> Callable[[], None] | None:
        """Makes forward passes keep less for gradients from now on; None where they cannot."""
        ...

    def losses(self, batch: Batch) -> Iterator[tuple[UnitKey, Tensor]]:
        """Losses on a batch, one after the other; a unit may come several times."""
        ...


def mean_losses(objective: Objective, batch: Batch) -> dict[UnitKey, float]:
    """The mean loss of every unit on a batch, without gradients."""
    found: dict[UnitKey, list[float]] = {}
    with torch.no_grad():
        for key, loss in objective.losses(batch):
            found.setdefault(key, []).append(float(loss))
    return {key: sum(losses) / len(losses) for key, losses in found.items()}


def floating_dtypes(model: nn.Module) -> set[torch.dtype]:
    """The dtypes of a model's floating parameters."""
    return {p.dtype for p in model.parameters() if p.is_floating_point()}
