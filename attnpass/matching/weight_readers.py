"""Where the weights of a softmax go: into products with values along their axis, or elsewhere.

For ``normaliser``, whose conditions 2 and 3 are met here.
"""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from attnpass.graph import is_metadata, number, op_name, operand, operators, value
from attnpass.matching.axes import AxisTracer
from attnpass.matching.axis_rules import RULES
from attnpass.matching.chain import made_from
from attnpass.matching.factors import Axes, Factor, kinds, other_positions
from attnpass.matching.facts import GraphFacts
from attnpass.matching.map_axes import is_distribution, side_of
from attnpass.matching.products import Contraction, any_product
from attnpass.matching.surroundings import projected

MOST = 256
"""So many nodes are looked at on each side of a softmax."""

_NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm"})


class Followed(AxisTracer):
    """The axes of one node followed through its users, by marks of their own."""

    def __init__(self, facts: GraphFacts, start: fx.Node, marks: dict[int, str]) -> None:
        super().__init__(fx.Graph(), set())
        self.axes = ChainMap({}, facts.axes)
        found = list(facts.axes[start])
        for i, kind in marks.items():
            size = value(start).shape[i]
            found[i] = (Factor((start.name, i, kind), size, kind),)
        self.axes[start] = tuple(found)

    def step(self, node: fx.Node, kind: Collection[str]) -> bool:
        """Whether a node's result has an axis with one of these marks."""
        result: Any = node.meta.get("val")
        self._call(node, result)
        if op_name(node) in ("scatter", "scatter_add") and len(node.args) > 3:
            # weights of some keys are put among those of all
            source, dim = self.axes.get(operand(node, 3), ()), number(node, 1)
            self.axes[node] = tuple(
                old if i != dim % len(source) else other_positions(old, new)
                for i, (old, new) in enumerate(
                    zip(source, self.fresh(node, result, "unknown"), strict=True)
                )
            )
        elif isinstance(result, Tensor) and op_name(node) not in RULES:
            # what is not understood keeps the places of an operand of its shape
            for x in node.all_input_nodes:
                same = isinstance(x.meta.get("val"), Tensor) and value(x).shape == result.shape
                if same and self.marked(x, kind) and not self.marked(node, kind):
                    self.axes[node] = self.axes[x]
        return self.marked(node, kind)

    def marked(self, node: fx.Node, kind: Collection[str]) -> bool:
        """Whether an axis of a node has one of these marks."""
        every = (*self.many.get(node, ()), self.axes.get(node, ()))
        return any(not kinds(axis).isdisjoint(kind) for axes in every for axis in axes)


@dataclass
class WeightReaders:
    """The way from the weights to the values (conditions 2 and 3)."""

    products: list[tuple[Contraction, fx.Node]] = field(default_factory=list)
    escapes: list[fx.Node] = field(default_factory=list)

    @classmethod
    def of(cls, facts: GraphFacts, softmax: fx.Node, dim: int) -> WeightReaders:
        """Every reader of the weights of ``softmax``, and of what is made from them along them."""
        found, walk = cls(), Followed(facts, softmax, {dim: "columns"})
        live, queue, queued = {softmax}, list(softmax.users), set(softmax.users)
        heapq.heapify(queue)
        while queue:
            node = heapq.heappop(queue)
            if is_metadata(node):
                continue
            if node.op != "call_function" or len(queued) > MOST or _joins(node, live):
                found.escapes.append(node)
            elif not found._met(facts, walk, node, live, softmax):
                live.add(node)
                for user in node.users:
                    if user not in queued:
                        queued.add(user)
                        heapq.heappush(queue, user)
        return found

    def _met(
        self,
        facts: GraphFacts,
        walk: Followed,
        node: fx.Node,
        live: set[fx.Node],
        softmax: fx.Node,
    ) -> bool:
        """Whether the way ends at a node: in a product with values, or with another reader."""
        product = any_product(node)
        if product is not None:
            for side, other in (("a", "b"), ("b", "a")):
                x, letters = side_of(product, side)
                axes = walk.axes.get(x, ())
                if x not in live or len(axes) != len(letters):
                    continue
                if _sums(product, letters, axes):
                    values = side_of(product, other)[0]
                    if not product.own(other):
                        continue  # a mask, a factor, or other weights
                    own = is_distribution(facts, *side_of(product, other), product.summed)
                    if own or made_from(values, softmax) or is_parameter(facts, values):
                        self.escapes.append(node)
                    else:
                        self.products.append((product, values))
                    return True
        if walk.step(node, {"columns", "merged"}):
            return False
        self.escapes.append(node)
        return True


def _sums(product: Contraction, letters: str, axes: Axes) -> bool:
    """Whether a product sums over softmax's axis, or over what it was merged into."""
    at = {
        mark: [c for c, axis in zip(letters, axes, strict=True) if mark in kinds(axis)]
        for mark in ("columns", "merged")
    }
    if at["columns"]:
        return all(c in product.summed for c in at["columns"])
    return any(c in product.summed for c in at["merged"])


def _joins(node: fx.Node, live: set[fx.Node]) -> bool:
    """Whether an operator joins the weights with something made from them, as a square does.

    Sums and differences of them are weights again (differential attention).
    """
    if op_name(node) in ("add", "sub", "cat", "stack"):
        return False
    count = 0

    def met(x: fx.Node) -> fx.Node:
        nonlocal count
        count += x in live
        return x

    fx.map_arg((node.args, node.kwargs), met)
    return count > 1


def makes(node: fx.Node) -> bool:
    """Whether an operator makes values of its own: what stands before it is another thing."""
    return op_name(node) in _NORMS or projected(node) is not None


def is_parameter(facts: GraphFacts, node: fx.Node, made: bool = False) -> bool:
    """Whether a tensor is made of parameters and constants alone.

    Projections and norms make another thing of them, unless ``made``.
    """
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in seen or is_metadata(node):
            continue
        seen.add(node)
        if node in facts.written:
            return False  # a cache
        if not made and makes(node):
            return False
        if node.op == "placeholder" and node not in facts.parameters:
            return False
        if node.op == "call_function":
            behind = node.all_input_nodes
            stack.extend(behind[:1] if op_name(node) in operators.CASTS else behind)
    return True
