"""Values inside captured graphs while the model runs: what calibration and distillation read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

from attnpass.capture import Capture, Graph, Layer

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


@contextmanager
def watching(
    capture: Capture,
    wanted: Callable[[Graph, Layer], Collection[str]],
    tell: Callable[[Graph, Layer, Seen], None],
) -> Iterator[None]:
    """While active, ``tell`` gets the values of the ``wanted`` nodes of every layer that runs.

    A layer that is met for the first time inside is not watched. Whatever ran before runs on, and
    again alone afterwards.
    """
    before = [(layer, layer.active) for _, layer in capture.layers]
    for graph, layer in capture.layers:
        layer.active = _watched(graph, layer, wanted(graph, layer), tell)
    try:
        yield
    finally:
        for layer, active in before:
            layer.active = active


def _watched(
    graph: Graph,
    layer: Layer,
    names: Collection[str],
    tell: Callable[[Graph, Layer, Seen], None],
) -> Callable[..., Any]:
    active = layer.active
    assert isinstance(active, fx.GraphModule)

    def run(*inputs: Any) -> Any:
        watcher = _Watcher(active, names)
        out = watcher.run(*inputs)
        tell(graph, layer, watcher.seen)
        return out

    return run
