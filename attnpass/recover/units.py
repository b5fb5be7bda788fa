"""The parameters that learn, in units, each with the size that its learning rate is relative to.

A unit is what one loss trains: one site of one plan in the local stage, all sites in the global
one. Units are clipped and judged each for itself, so plans that learn side by side do not disturb
each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from attnpass.plan import Delta, Plan

UNSCALED_COLUMNS = 64
"""Columns of a weight up to which its learning rate is not reduced."""

MIN_SIZE = 0.02
"""Least size that a learning rate is relative to: a parameter may start at 0."""

MIN_VECTOR_SIZE = 0.3
"""Least size of a form's vectors, which have one number per head or feature."""

UnitKey = tuple[str, str]
"""A unit's plan, by its label, and its site. Both are empty in the global stage, the label is
empty where only one plan learns. In checkpoints and results it is written ``label|site``."""


class TrainedParameter(NamedTuple):
    """One parameter that learns.

    Attributes:
        size: of what it changes, of which its learning rate is a part.
        delayed: whether it waits, in the local stage, until the forms' parameters have learnt
            alone. Deltas do.
        name: of the parameter in its unit.
        place: among the unit's parameters, in the order in which the plan holds them.
    """

    parameter: nn.Parameter
    size: float
    delayed: bool
    name: str = ""
    place: int = 0


@dataclass(frozen=True)
class Unit:
    """Parameters that one loss trains; their gradients are clipped together."""

    trained: list[TrainedParameter]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters in a fixed order."""
        return [t.parameter for t in self.trained]


def trained_unit(plan: Plan, sites: Collection[str], weights: Mapping[str, Tensor]) -> Unit:
    """The forms' parameters and the deltas at ``sites`` that are not frozen, sorted by name.

    ``weights`` are the model's own by path, which the deltas are added to.

    A plan that was stored holds its parameters in another order than one that was just made.
    """
    found: list[TrainedParameter] = []
    for site in sites:
        for key, value in plan.values.get(site, {}).items():
            size = _form_size(value, plan.sites[site].form)
            found.append(TrainedParameter(value, size, delayed=False, name=f"{site}|{key}"))
        for path, delta in plan.deltas.get(site, {}).items():
            for t in _of_delta(delta, weights[path]):
                found.append(t._replace(name=f"{site}|{path}|{t.name}"))
    kept = [t for t in found if t.parameter.requires_grad]
    return Unit(sorted((t._replace(place=i) for i, t in enumerate(kept)), key=lambda t: t.name))


def _form_size(value: Tensor, form: str) -> float:
    if form == "skipat":
        return root_mean_square(value) * width_factor(value)
    return root_mean_square(value, MIN_SIZE if value.dim() > 1 else MIN_VECTOR_SIZE)


def _of_delta(delta: Delta, weight: Tensor) -> Iterator[TrainedParameter]:
    """A delta's parameters; ``left`` of a low-rank one makes up for the smallness of ``right``."""
    size = root_mean_square(weight) * width_factor(weight)
    if delta.full is not None:
        yield TrainedParameter(delta.full, size, delayed=True, name="full")
        return
    assert delta.left is not None and delta.right is not None
    rank, columns = delta.right.shape
    left = size * math.sqrt(columns / rank)
    yield TrainedParameter(delta.left, left, delayed=True, name="left")
    yield TrainedParameter(delta.right, root_mean_square(delta.right), delayed=True, name="right")


def width_factor(weight: Tensor) -> float:
    """At most 1: changes of all columns add up, so a wide weight learns slowly (2203.03466)."""
    return min(math.sqrt(UNSCALED_COLUMNS / weight.shape[-1]), 1.0)


def root_mean_square(x: Tensor, minimum: float = MIN_SIZE) -> float:
    """Root mean square of a tensor, at least ``minimum``."""
    return max(float(x.detach().float().square().mean().sqrt()), minimum)
