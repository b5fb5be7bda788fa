"""Values of nodes inside captured graphs while the model runs.

Calibration and distillation read hidden states and masks with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from attnpass.batch import Batch, call
from attnpass.capture.capture import Capture
from attnpass.capture.captured import CapturedGraph, Layer
from attnpass.capture.segments import Segments
from attnpass.seeds import generators

Seen = dict[str, Any]
"""Values by node name."""


class _Watcher(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, gm: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(gm)
        self.names, self.seen = names, Seen()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.seen[n.name] = value
        return value


Ran = list[tuple[CapturedGraph, Layer, Seen]]
"""The layers that ran, in order, with what was seen."""


def watched(
    capture: Capture,
    batch: Batch,
    wanted: Callable[[CapturedGraph, Layer], Collection[str]],
    *,
    recomputed: bool = False,
) -> tuple[Any, Ran]:
    """The model's output, and the values of the ``wanted`` nodes of every layer that ran.

    Where the batch made new graphs, which nothing watched, it runs once more. ``recomputed``:
    gradients compute activations a second time (``Segments``).
    """
    known, ran, out = -1, Ran(), None
    devices = generators()
    random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]
    while known != len(capture.layers):
        # a run that is repeated draws the same dropout
        torch.set_rng_state(random[0])
        for i, state in zip(devices, random[1:], strict=True):
            torch.cuda.set_rng_state(state, i)
        known = len(capture.layers)
        ran.clear()
        before = [(layer, layer.active) for _, layer in capture.layers]
        try:
            for graph, layer in capture.layers:
                layer.active = _watch(graph, layer, wanted(graph, layer), ran, recomputed)
            out = call(capture, batch)
        finally:
            for layer, active in before:
                layer.active = active
    return out, ran


def _watch(
    graph: CapturedGraph, layer: Layer, names: Collection[str], ran: Ran, recomputed: bool
) -> Callable[..., Any]:
    active = layer.active
    assert isinstance(active, fx.GraphModule)

    def run(*inputs: Any) -> Any:
        if recomputed and torch.is_grad_enabled():
            out, seen = Segments(active, names).run(*inputs)
        else:
            watcher = _Watcher(active, names)
            out, seen = watcher.run(*inputs), watcher.seen
        ran.append((graph, layer, seen))
        return out

    return run
