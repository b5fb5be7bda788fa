"""The ``torch.compile`` entry: normalise, match, plan, rewrite, hand to the inner compiler.

Dynamo calls the backend once per graph. One graph may serve many layers (graph breaks, regional
compile), so what runs is chosen at every call by the identity of the layer's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from attnpass.rewrite import FORMS_ATTRIBUTE


def _by_position(
    gm: fx.GraphModule,
    given: Mapping[tuple[str | int, str], Tensor],
    modules: Mapping[str, nn.Module],
) -> dict[str, Tensor]:
    """The same values under the names that the rewritten graph's forms have."""
    forms: Any = gm.get_submodule(FORMS_ATTRIBUTE)
    where = {id(module): key for key, module in forms.items()}
    return {
        f"{where[id(modules[at])]}.{name}": value
        for (at, name), value in given.items()
        if isinstance(at, str)
    }


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """What two modules must share to run the same code: all but the parameters' values."""
    plain = {k: repr(v) for k, v in vars(module).items() if not k.startswith("_")}
    shapes = {n: (tuple(p.shape), p.requires_grad) for n, p in module.named_parameters()}
    return (type(module).__name__, *sorted(plain.items()), *sorted(shapes.items()))
