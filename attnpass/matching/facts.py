"""The facts about one graph that every reader of a map relies on, gathered once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import fx

from attnpass.graph import op_name, operand, operators, value, views_of, written
from attnpass.matching.axes import AxisTracer
from attnpass.matching.factors import Axes, Axis, Factor
from attnpass.matching.layout import Lead, lead_of
from attnpass.matching.refuse import Refuse


def _layered(node: fx.Node, axes: Mapping[fx.Node, Axes]) -> Axis:
    """The axis of an activation over which a linear layer or a norm runs; none without one."""
    at = {"linear": 0, "addmm": 1, "layer_norm": 0, "rms_norm": 0}.get(op_name(node))
    given = () if at is None else axes.get(operand(node, at), ())
    return given[-1] if given else ()


def _origin(factor: Factor) -> str:
    """The name of the node that a factor comes from, or of an earlier graph's."""
    origin: Any = factor.id
    while isinstance(origin, (tuple, Factor)) and origin:
        origin = origin.id if isinstance(origin, Factor) else origin[0]
    return str(origin)


@dataclass(frozen=True)
class GraphFacts:
    """What is proven of a graph before any anchor is read.

    Attributes:
        axes: where the axes of every tensor come from.
        written: tensors whose storage is written to, with all that may share it, and the operators
            that write.
        parameters: the placeholders that hold weights.
        order: the places of the nodes, by their names, behind those of earlier graphs.
        layered: parts of inputs' axes over which a layer runs: they hold features.
    """

    axes: MutableMapping[fx.Node, Axes]
    written: dict[fx.Node, list[fx.Node]]
    parameters: set[fx.Node]
    order: dict[str, int] = field(default_factory=dict)
    layered: frozenset[Factor] = frozenset()

    @classmethod
    def of(
        cls,
        graph: fx.Graph,
        parameters: set[fx.Node],
        given: Mapping[fx.Node, Axes] = MappingProxyType({}),
    ) -> GraphFacts:
        """The facts of a normalised graph; ``given``: axes of inputs, from an earlier graph."""
        earlier = sorted({_origin(f) for axes in given.values() for axis in axes for f in axis})
        order = {name: i for i, name in enumerate([*earlier, *(n.name for n in graph.nodes)])}
        axes = AxisTracer(graph, parameters, given).axes
        layered = frozenset(f for n in graph.nodes for f in _layered(n, axes) if f.kind == "input")
        return cls(axes, written(graph), parameters, order, layered)

    def crossed(self, summed: Iterable[Axis], own: Iterable[Axis]) -> bool:
        """Whether a product of inputs keeps what layers run over, and sums over something else."""
        over, kept = ({f for axis in axes for f in axis} for axes in (summed, own))
        inputs = all(f.kind == "input" for f in over)
        return inputs and not kept.isdisjoint(self.layered) and over.isdisjoint(self.layered)

    def made(self, *axes: Axis) -> int:
        """When the latest feature of some axes was made, by its node's place; -1 without any."""
        return max((self._made(f) for axis in axes for f in axis), default=-1)

    def _made(self, factor: Factor) -> int:
        late = len(self.order)  # of unknown origin
        return self.order.get(_origin(factor), late) if factor.kind == "feature" else -1

    def lead(self, node: fx.Node, at: Iterable[int]) -> Lead:
        """Batch and heads among the axes ``at`` of a node, taken as its leading axes."""
        at, shape = list(at), value(node).shape
        return lead_of([self.axes[node][i] for i in at], [shape[i] for i in at])

    def refuse_written(self, node: fx.Node, reader: fx.Node, condition: str) -> None:
        """Refuse a tensor that was written in place before ``reader``, or is computed from such.

        What is written after something was computed from it does not matter.

        Raises:
            Refuse: with the caller's ``condition``.
        """
        seen: set[fx.Node] = set()
        stack = [node] if self.written else []
        while stack:
            at = stack.pop()
            until = reader if at is node else node
            if any(by < until for by in self.written.get(at, ())):
                raise Refuse(condition, "MUTATED_ALIAS", "an operand is written in place", at)
            if at not in seen:
                seen.add(at)
                stack.extend(at.all_input_nodes)

    def refuse_changed(self, node: fx.Node, until: fx.Node, condition: str) -> None:
        """Refuse a tensor that is written after it was first read on the way to ``until``.

        Read at ``until`` it would not be what it was: writes before the first reader, as those of
        a cache that is filled, and after ``until`` do not matter.

        Raises:
            Refuse: with the caller's ``condition``.
        """
        writers = self.written.get(node)
        if not writers:
            return
        first = min(self._readers(node, until), default=until)
        for by in writers:
            if first < by < until:
                raise Refuse(condition, "MUTATED_ALIAS", "an operand is written in place", by)

    def _readers(self, node: fx.Node, until: fx.Node) -> set[fx.Node]:
        """The nodes that read a tensor's values, itself or a view of it, on the way to another."""
        on_the_way: set[fx.Node] = set()
        stack = [until]
        while stack:
            at = stack.pop()
            if at not in on_the_way and at > node:
                on_the_way.add(at)
                stack.extend(at.all_input_nodes)
        views = {node, *views_of(node)}
        users = {x for view in views for x in view.users if x in on_the_way}
        return {x for x in users if x not in views or op_name(x) in operators.MAY_COPY}
