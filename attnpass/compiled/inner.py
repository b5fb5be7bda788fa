"""The inner compiler: inductor, ``aot_eager``, ``eager``, or any callable of graph and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from attnpass.compiled.options import Options
from attnpass.torch_internals import aot_eager, compile_fx, inductor_modes

Compiled = Callable[..., Any]
"""A compiled graph: takes the graph's inputs by position."""


def compile_inner(
    gm: fx.GraphModule, inputs: list[Any], options: Options, *, matcher: bool = True
) -> Compiled:
    """``gm`` compiled as the options say. Without ``matcher`` inductor's own patterns are off."""
    compiled: Compiled
    if callable(options.inner):
        compiled = options.inner(gm, inputs)
    elif options.inner == "eager":
        for node in gm.graph.nodes:
            # the graph lives on; its fake tensors would hold on to the model's parameters
            node.meta.pop("val", None)
        compiled = gm.forward
    elif options.inner == "aot_eager":
        compiled = aot_eager(gm, inputs)
    else:
        patches = inductor_modes(options.mode) if options.mode else {}
        patches |= {} if matcher else {"pattern_matcher": False}
        compiled = compile_fx(gm, inputs, {**patches, **options.inductor})
    return compiled
