"""The ``torch.compile`` entry: normalise, match, plan, rewrite, hand to the inner compiler.

Dynamo calls the backend once per graph. One graph may serve many layers (graph breaks, regional
compile), so what runs is chosen at every call by the identity of the layer's parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from attnpass.plan import Delta

log = logging.getLogger("attnpass")

Compiled = Callable[..., Any]


def _values(
    modules: Mapping[str, nn.Module], deltas: Mapping[int, Delta]
) -> dict[tuple[str | int, str], nn.Parameter]:
    """Every parameter of the modules, by site and name, then of the deltas, in a fixed order."""
    owners: list[tuple[str | int, nn.Module]] = [*sorted(modules.items()), *sorted(deltas.items())]
    return {
        (at, name): value
        for at, owner in owners
        for name, value in sorted(owner.named_parameters())
    }


class _Dispatch:
    """Chooses the variant of the layer whose parameters a call brings."""

    def __init__(self, fallback: Compiled, checked: bool) -> None:
        self.fallback, self.checked = fallback, checked
        self.layers: list[tuple[list[tuple[int, Any]], Compiled]] = []
        self.warned = False

    def add(
        self,
        variant: Compiled,
        modules: Mapping[str, nn.Module],
        deltas: Mapping[int, Delta],
        identity: list[tuple[int, Any]],
    ) -> None:
        """One more layer. A graph compiled with gradients adds ``deltas`` itself."""
        inside = torch.is_grad_enabled()
        values = list(_values(modules, deltas if inside else {}).values())

        def call(*args: Any) -> Any:
            if deltas and not inside:
                args = tuple(deltas[i](x) if i in deltas else x for i, x in enumerate(args))
            return variant(*args, *values)

        self.layers.append((identity, call))

    def callable(self) -> Compiled:
        return self.__call__

    def __call__(self, *args: Any) -> Any:
        for identity, run in self.layers:
            if not self.checked or all(args[i] is ref() for i, ref in identity):
                return run(*args)
        if not self.warned:
            self.warned = True
            log.warning(
                "a graph serves a layer that the plan does not know; it runs unchanged: "
                "give the model with plan.bind(model, *args)"
            )
        return self.fallback(*args)
