"""The facts about one graph that every reader of a map relies on, gathered once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from attnpass.graph import value, written
from attnpass.matching.axes import AxisTracer
from attnpass.matching.factors import Axes
from attnpass.matching.layout import Lead, lead_of
from attnpass.matching.refuse import Refuse


@dataclass(frozen=True)
class GraphFacts:
    """What is proven of a graph before any anchor is read.

    Attributes:
        axes: where the axes of every tensor come from.
        written: tensors whose storage some operator writes to, with all that may share it.
        parameters: the placeholders that hold weights.
    """

    axes: dict[fx.Node, Axes]
    written: set[fx.Node]
    parameters: set[fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph, parameters: set[fx.Node]) -> GraphFacts:
        """The facts of a normalised graph."""
        return cls(AxisTracer(graph, parameters).axes, written(graph), parameters)

    def lead(self, node: fx.Node, at: Iterable[int]) -> Lead:
        """Batch and heads among the axes ``at`` of a node, taken as its leading axes."""
        at, shape = list(at), value(node).shape
        return lead_of([self.axes[node][i] for i in at], [shape[i] for i in at])

    def refuse_written(self, node: fx.Node, condition: str, *, deep: bool = False) -> None:
        """Refuse a tensor that is written in place; ``deep``: or is computed from such a tensor.

        Raises:
            Refuse: with the caller's ``condition``.
        """
        seen: set[fx.Node] = set()
        stack = [node] if self.written else []
        while stack:
            node = stack.pop()
            if node in self.written:
                raise Refuse(condition, "MUTATED_ALIAS", "an operand is written in place", node)
            if deep and node not in seen:
                seen.add(node)
                stack.extend(node.all_input_nodes)
