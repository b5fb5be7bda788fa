"""The walk from a softmax up to the logits' product, and down to the product with the values.

The operators between are collected as steps; an operator that is not understood ends the walk.

Soundness: a chain holds every operator through which the logits and the weights pass, so a form
that stands for the whole chain computes all that the chain did. Conditions:

1. Each way from the softmax's operand ends at a product of two activations.
2. The softmax weights meet values in a product.
3. A maximum that is subtracted is one of the softmax's own row: it does not change the softmax.
4. Gradients are not switched on or off between the two products.

Other readers of the weights do not refuse the anchor: the chain records them as ``escapes``, and
fewer forms are then legal. Other readers of the logits get what they got before. Not covered:
steps in another graph (a graph break between them).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx

from attnpass.graph import (
    SUBCLASS,
    Opaque,
    is_metadata,
    number,
    op_name,
    operators,
    switched,
    value,
)
from attnpass.matching.products import Contraction, contraction
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import (
    Added,
    MaximumSubtracted,
    ScoreStep,
    SinkJoined,
    is_row_maximum,
    mixed_map,
    read_step,
)

DEPTH = 8
"""How many operators may stand between the weights and the product with the values."""


@dataclass
class Chain:
    """An anchor with both products and all that is between.

    Attributes:
        scores: the product of queries and keys.
        steps: from that product to softmax.
        softmax: the anchor. dim: its axis, counted from the end (-1 is last).
        after: nodes from softmax to the second product, in order.
        output: the product of weights and values.
        dropout: drop probability on the weights (0 when inactive).
        escapes: nodes that read the weights elsewhere.
    """

    scores: Contraction
    steps: list[ScoreStep]
    softmax: fx.Node
    dim: int
    after: list[fx.Node] = field(default_factory=list)
    output: Contraction | None = None
    dropout: float = 0.0
    escapes: list[fx.Node] = field(default_factory=list)

    def has(self, *kinds: type[ScoreStep]) -> bool:
        """Whether any step is of one of ``kinds``."""
        return any(isinstance(step, kinds) for step in self.steps)


Way = tuple[Contraction, list[ScoreStep]]
"""A product that logits may come from, and the steps from there to softmax."""


def chains(anchor: fx.Node, parameters: Collection[fx.Node] = ()) -> Iterator[Chain]:
    """Every chain around a softmax node: one for each product that its logits may come from.

    ``parameters``: the graph's weight placeholders.

    Raises:
        Refuse: there is none, or it holds a step that is not understood.
    """
    rank, dim = value(anchor).dim(), number(anchor, 1)
    found = reached(anchor, parameters)
    ways = [x for x in found if not isinstance(x, Refuse)]
    if not ways:
        raise next(x for x in found if isinstance(x, Refuse))
    for scores, steps in ways:
        out = Chain(scores, steps, anchor, dim if dim < 0 else dim - rank)
        _down(out)
        _check(out)
        yield out


def reached(anchor: fx.Node, parameters: Collection[fx.Node] = ()) -> list[Way | Refuse]:
    """Every product that the logits of a softmax come from, and why other ways end."""
    logits = anchor.args[0]
    assert isinstance(logits, fx.Node)
    return list(_up(logits, anchor, set(), parameters))


def _check(out: Chain) -> None:
    """Refuse what is read or switched on the way; ``reader`` refuses what is written."""
    for step in out.steps:
        if isinstance(step, MaximumSubtracted) and not is_row_maximum(step.maximum, out.dim):
            hint = "a maximum over another axis"
            raise Refuse("chain 3", "UNKNOWN_SCORE_OP:sub", hint, step.at)
    assert out.output is not None
    if switched(out.scores.node, out.output.node):
        hint = "gradients are switched inside the attention"
        raise Refuse("chain 4", "HOP_UNSUPPORTED", hint, out.output.node)


def _up(
    node: fx.Node, below: fx.Node, seen: set[fx.Node], parameters: Collection[fx.Node]
) -> Iterator[Way | Refuse]:
    """From a softmax operand up to products of two activations, and why other ways end."""
    product = None if mixed_map(node) is not None else contraction(node)
    if product is not None:
        yield product, [] if product.added is None else [Added(node, product.added)]
        return
    options = read_step(node)
    if not options:
        yield _end(node, below, parameters)
    for logits, step in options:
        if logits not in seen:
            seen.add(logits)
            for found in _up(logits, node, seen, parameters):
                yield found if isinstance(found, Refuse) else (found[0], [*found[1], step])


_TRANSPARENT = operators.CASTS | operators.VIEWS | operators.TRANSPOSES | operators.SPLITS
_TRANSPARENT |= operators.PIECES | {"", "topk", "relu", "gelu", "silu", "tanh"}
"""Operators that are looked through to say where logits come from that are no product."""


def _end(node: fx.Node, below: fx.Node, parameters: Collection[fx.Node]) -> Refuse:
    """Why the way up ends at ``node`` (condition 1)."""
    if node.op == "placeholder" and node not in parameters:
        hint = "the logits come into this graph from outside (a graph break)"
        return Refuse("chain 1", "CROSS_GRAPH", hint, node)
    while op_name(node) in _TRANSPARENT and not isinstance(node.target, Opaque):
        if node.op != "call_function" or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    name = op_name(node)
    layer = isinstance(node.target, Opaque) and node.target.projected is not None
    if isinstance(node.target, Opaque) and not (layer and node.target.kind == SUBCLASS):
        hint = f"the logits come out of {node.target.kind}, which is kept as it is"
        return Refuse("chain 1", "HOP_UNSUPPORTED", hint, node)
    weighed = name in ("matmul", "mv") and any(x in parameters for x in node.all_input_nodes)
    names = ("linear", "convolution", "conv2d", "addmm", "conv1d", "batch_norm")
    if layer or weighed or name in names:
        hint = "softmax of a projection, not of queries and keys"
        return Refuse("chain 1", "NOT_ATTENTION:router", hint, node)
    if node.op != "call_function" or name in ("embedding", "layer_norm", "mean", "sum"):
        hint = "softmax of something that is no product"
        return Refuse("chain 1", "NOT_ATTENTION:pooling", hint, below)
    code = f"UNKNOWN_SCORE_OP:{name or node.target}"
    return Refuse("chain 1", code, "a step before softmax is not understood", node)


_ONWARD = operators.CASTS | operators.COPIES | operators.VIEWS | operators.TRANSPOSES | {"dropout"}
"""Operators that the weights may pass on their way to the values."""


def _down(out: Chain) -> None:
    """From softmax to the product with the values; records dropout and other readers."""
    node = out.softmax
    while True:
        onward: list[tuple[fx.Node, Contraction | None]] = []
        for user in node.users:
            if is_metadata(user):
                continue
            mixed = mixed_map(user) is node
            product = None if mixed else contraction(user)
            passes = mixed or op_name(user) in _ONWARD or _drops_sink(out, user)
            if product is not None and isinstance(value(product.node), Tensor):
                onward.append((user, product))
            elif passes and any(_leads_to_product(u, user, 0) for u in user.users):
                onward.append((user, None))
            else:
                out.escapes.append(user)
        if not onward:
            if any(x.op == "output" for x in out.escapes):
                hint = "the weights leave this graph before they meet values"
                raise Refuse("chain 2", "CROSS_GRAPH", hint, node)
            if inside := [x.target.kind for x in out.escapes if isinstance(x.target, Opaque)]:
                hint = f"the weights go into {inside[0]}, which is kept as it is"
                raise Refuse("chain 2", "HOP_UNSUPPORTED", hint, node)
            hint = "the softmax weights never meet values in a product"
            raise Refuse("chain 2", "NOT_ATTENTION:gate", hint, node)
        out.escapes.extend(other for other, _ in onward[1:])
        node, product = onward[0]
        if product is not None:
            out.output = product
            return
        out.after.append(node)
        if op_name(node) == "dropout" and node.args[2]:
            p = node.args[1]
            assert isinstance(p, (int, float))
            out.dropout = float(p)


def _drops_sink(out: Chain, node: fx.Node) -> bool:
    """Whether a node may cut a sink's column off the weights."""
    last = value(node).dim() - 1 if op_name(node) == "slice" else None
    return last is not None and out.has(SinkJoined) and number(node, 1) in (-1, last)


def _leads_to_product(node: fx.Node, before: fx.Node, depth: int) -> bool:
    """Whether a few operators on from ``before`` there is a product."""
    mixed = mixed_map(node) is before
    if not mixed and contraction(node) is not None:
        return True
    return (
        (mixed or op_name(node) in _ONWARD)
        and depth < DEPTH
        and any(_leads_to_product(u, node, depth + 1) for u in node.users)
    )


def made_from(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``node`` is computed from ``source``; only nodes behind it are looked at."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node is source:
            return True
        if node not in seen and node > source:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False
