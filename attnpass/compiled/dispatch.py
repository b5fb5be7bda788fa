"""The callable that Dynamo runs: at each call it picks a layer by the parameters among inputs."""

from __future__ import annotations

import logging
from typing import Any

import torch

from attnpass.compiled.inner import Compiled
from attnpass.compiled.layers import Layer
from attnpass.compiled.variant import added_values

log = logging.getLogger("attnpass")


class Dispatch:
    """Chooses the variant of the layer whose parameters a call brings.

    Args:
        fallback: runs where no layer is known. checked: compare parameters at every call; without
            (a bare form at all sites, the same for every layer) the first layer serves all.
    """

    def __init__(self, fallback: Compiled, checked: bool) -> None:
        self.fallback, self.checked = fallback, checked
        self.layers: list[tuple[Layer, Compiled]] = []
        self.warned = False

    def add(self, layer: Layer, variant: Compiled) -> None:
        """One more layer. A graph compiled with gradients adds the deltas itself."""
        inside = torch.is_grad_enabled()
        deltas = layer.deltas
        values = list(added_values(layer.modules, deltas if inside else {}).values())

        def call(*args: Any) -> Any:
            if deltas and not inside:
                args = tuple(deltas[i](x) if i in deltas else x for i, x in enumerate(args))
            return variant(*args, *values)

        self.layers.append((layer, call))

    def __call__(self, *args: Any) -> Any:
        """The output of the layer whose parameters are among ``args``."""
        for layer, run in self.layers:
            if not self.checked or all(args[i] is ref() for i, ref in layer.identity):
                return run(*args)
        if not self.warned:
            self.warned = True
            log.warning(
                "a graph serves a layer that the plan does not know; it runs unchanged: "
                "give the model with plan.bind(model, *args)"
            )
        return self.fallback(*args)
