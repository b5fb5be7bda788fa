"""A graph that is run in segments, whose activations gradients compute a second time.

What is kept is what segments hand to each other and what the caller wants to see: activation
checkpointing (1604.06174), with borders where the graph has the fewest values in use.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

from torch import fx
from torch.utils.checkpoint import checkpoint


class _Segment(NamedTuple):
    """Nodes that run together, the earlier ones that they read, and those of them read later."""

    nodes: list[fx.Node]
    reads: list[fx.Node]
    gives: list[fx.Node]


class Segments:
    """Runs a graph in about as many segments as each of them has nodes.

    Args:
        gm: the graph. names: of the nodes whose values are returned too.
    """

    def __init__(self, gm: fx.GraphModule, names: Collection[str]) -> None:
        self.gm, self.names = gm, set(names)
        nodes = list(gm.graph.nodes)
        self.inputs = [n for n in nodes if n.op == "placeholder"]
        self.result = nodes[-1]
        body = nodes[len(self.inputs) : -1]
        self.last = {n: i for i, node in enumerate(nodes) for n in node.all_input_nodes}
        self.place = {node: i for i, node in enumerate(nodes)}
        self.segments = [self._segment(part) for part in self._cut(body)]

    def _cut(self, body: list[fx.Node]) -> list[list[fx.Node]]:
        """The nodes in parts: of every square root of their number the narrowest border."""
        window = max(math.isqrt(len(body)), 1)
        borders = []
        for start in range(window, len(body) - window + 1, window):
            around = range(start, start + window)
            borders.append(min(around, key=lambda i: self._in_use(body, i)))
        edges = sorted({0, *borders, len(body)})
        return [body[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    def _in_use(self, body: list[fx.Node], border: int) -> int:
        """How many values of nodes before a border are read after it."""
        at = self.place[body[border]]
        return sum(self.last.get(node, -1) >= at for node in body[:border])

    def _segment(self, nodes: list[fx.Node]) -> _Segment:
        own, end = set(nodes), self.place[nodes[-1]]
        read = (x for node in nodes for x in node.all_input_nodes)
        gives = [n for n in nodes if self.last.get(n, -1) > end or n.name in self.names]
        return _Segment(nodes, list(dict.fromkeys(x for x in read if x not in own)), gives)

    def run(self, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        """The graph's result, and the values by name of the nodes that are wanted."""
        values = dict(zip(self.inputs, inputs, strict=True))
        seen = {n.name: x for n, x in values.items() if n.name in self.names}
        for segment in self.segments:
            given = [values[n] for n in segment.reads]
            out = checkpoint(partial(self._run, segment), *given, use_reentrant=False)
            values.update(zip(segment.gives, out, strict=True))
            seen |= {n.name: values[n] for n in segment.gives if n.name in self.names}
            end = self.place[segment.nodes[-1]]
            values = {n: x for n, x in values.items() if self.last.get(n, -1) > end}
        return fx.node.map_arg(self.result.args[0], values.__getitem__), seen

    def _run(self, segment: _Segment, *given: Any) -> tuple[Any, ...]:
        interpreter = fx.Interpreter(self.gm, garbage_collect_values=False)
        interpreter.env = dict(zip(segment.reads, given, strict=True))
        for node in segment.nodes:
            interpreter.env[node] = interpreter.run_node(node)
        return tuple(interpreter.env[n] for n in segment.gives)
