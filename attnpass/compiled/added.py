"""The plan's values that a rewritten graph takes as inputs, looked up anew at every call.

Soundness (versions of values): a call computes with the plan's values as they are at that call.
Conditions:

1. A value is looked up in the plan at every call, never kept: an optimiser may write it in place,
   a user may put another parameter or delta in its place.
2. What was compiled for one shape, dtype and device takes no other: the call raises.
3. A parameter that is trained now and was frozen when a graph was compiled would get no gradient:
   the call raises.
4. The sum of a weight and its delta is part of the graph. It is kept between calls only under
   ``Plan.hold``, which says what it no longer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from attnpass.compiled.layers import Layer
from attnpass.errors import PlanError
from attnpass.plan import Delta, Plan

Key = tuple[str | int, str]
"""A site of the graph, or the position of a weight, and the name of a value there."""


def delta_of(plan: Plan, site: str, path: str) -> Delta:
    """The plan's delta of a weight.

    Raises:
        PlanError: the plan has none any more.
    """
    found = plan.deltas.get(site, {}).get(path)
    if found is None:
        raise PlanError(f"expected the plan's delta of {path}, got none; compile the model again")
    return found


def added_values(plan: Plan, layer: Layer) -> dict[Key, Callable[[], nn.Parameter]]:
    """What gives each value that a variant takes: the forms' by site, then the deltas'.

    Where the layer is ``held``, the deltas are no inputs.
    """
    found: dict[Key, Callable[[], nn.Parameter]] = {}
    for own, module in sorted(layer.modules.items()):
        site = layer.names[own]
        for name, _ in sorted(module.named_parameters()):
            found[own, name] = _form_value(plan, site, name)
    for at, (site, path) in sorted(() if layer.held else layer.deltas.items()):
        for name, _ in sorted(delta_of(plan, site, path).named_parameters()):
            found[at, name] = _delta_value(plan, site, path, name)
    return found


def _form_value(plan: Plan, site: str, name: str) -> Callable[[], nn.Parameter]:
    return lambda: plan.values[site][name]


def _delta_value(plan: Plan, site: str, path: str, name: str) -> Callable[[], nn.Parameter]:
    def value() -> nn.Parameter:
        found = delta_of(plan, site, path)._parameters.get(name)
        if found is None:
            raise PlanError(f"expected {name} in the delta of {path}, got none; compile again")
        return found

    return value


class Values:
    """The added values of one layer at a call, checked against those it was compiled with.

    Args:
        given: what gives each value. trained: whether the compiled graph has a gradient for a
            value only where it was trainable when it was compiled.
    """

    def __init__(self, given: Sequence[Callable[[], nn.Parameter]], trained: bool) -> None:
        self.given = list(given)
        now = [value() for value in given]
        self.kinds = [_kind(x) for x in now]
        self.trainable = [x.requires_grad or not trained for x in now]

    def __call__(self) -> list[nn.Parameter]:
        """The values now.

        Raises:
            PlanError: a value is of another shape, dtype or device, or was frozen when the graph
                was compiled and is trainable now.
        """
        found = [value() for value in self.given]
        gradients = torch.is_grad_enabled()
        for x, kind, trainable in zip(found, self.kinds, self.trainable, strict=True):
            if _kind(x) != kind:
                raise PlanError(
                    f"expected the plan's values of {kind} as compiled, got {_kind(x)};"
                    " compile the model again (torch.compiler.reset())"
                )
            if gradients and x.requires_grad and not trainable:
                raise PlanError(
                    "expected plan parameters that stay frozen as they were compiled, got one that"
                    " is trainable now; compile the model again (torch.compiler.reset())"
                )
        return found


def _kind(x: Any) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.device
