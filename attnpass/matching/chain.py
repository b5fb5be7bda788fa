"""The walk from a softmax up to the logits' product, and down to the one that reads the weights.

What stands between is collected as terms; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from attnpass.graph import CASTS, COPIES, TRANSPOSES, VIEWS, is_metadata, op_name, switched, writes
from attnpass.matching.products import Contraction, contraction
from attnpass.matching.refuse import Refuse
from attnpass.matching.steps import _READERS, Term, _is_maximum, _row_maximum, mixed_map


@dataclass
class Chain:
    """An anchor with both products and all that is between.

    Attributes:
        scores: the product of queries and keys.
        terms: from that product to softmax.
        softmax: the anchor. dim: its axis, counted from the end (-1 is last).
        after: nodes from softmax to the second product, in order.
        output: the product of weights and values.
        dropout: drop probability on the weights (0 when inactive).
        escapes: nodes that read the weights or the logits elsewhere.
    """

    scores: Contraction
    terms: list[Term]
    softmax: fx.Node
    dim: int
    after: list[fx.Node] = field(default_factory=list)
    output: Contraction | None = None
    dropout: float = 0.0
    escapes: list[fx.Node] = field(default_factory=list)


Up = tuple[Contraction, list[Term]]


def chains(anchor: fx.Node) -> Iterator[Chain]:
    """Every chain around a softmax node: one for each product that its logits may come from.

    Raises:
        Refuse: there is none, or it holds a step that is not understood.
    """
    rank = anchor.meta["val"].dim()
    dim = int(anchor.args[1])  # type: ignore[arg-type]
    found = reached(anchor)
    ways = [x for x in found if not isinstance(x, Refuse)]
    if not ways:
        raise next(x for x in found if isinstance(x, Refuse))
    for scores, terms in ways:
        out = Chain(scores, terms, anchor, dim if dim < 0 else dim - rank)
        _down(out)
        _check(out)
        yield out


def reached(anchor: fx.Node) -> list[Up | Refuse]:
    """Every product that the logits of a softmax come from, and why other ways end."""
    return list(_up(anchor.args[0], anchor, set()))


def _check(out: Chain) -> None:
    """Refuse what reads or writes the map on its way; note who else reads it."""
    inside = {t.at for t in out.terms} | {out.scores.node, out.softmax, *out.after}
    for term in out.terms:
        if term.kind == "maximum" and not _row_maximum(term.node, out.dim):
            raise Refuse("UNKNOWN_SCORE_OP:sub", "a maximum over another axis", term.at)
    assert out.output is not None
    if switched(out.scores.node, out.output.node):
        hint = "gradients are switched inside the attention"
        raise Refuse("HOP_UNSUPPORTED", hint, out.output.node)
    for node in [out.scores.node, *(t.at for t in out.terms)]:
        if any(writes(u) and u.args[0] is node for u in node.users):
            raise Refuse("MUTATED_ALIAS", "the logits are written in place through a view", node)
        for user in node.users:
            if user not in inside and not is_metadata(user) and not _is_maximum(user):
                out.escapes.append(user)


def _up(node: Any, below: fx.Node, seen: set[fx.Node]) -> Iterator[Up | Refuse]:
    """From a softmax operand up to products of two activations, and why other ways end."""
    mixed = mixed_map(node)
    product = None if mixed is not None else contraction(node)
    if product is not None:
        yield product, [Term("add", node, product.added)] if product.added is not None else []
        return
    reader = _READERS.get(op_name(node))
    options = reader(node) if reader else []
    if mixed is not None:
        options = [(mixed, Term("mix", node))]
    if not options:
        yield _end(node, below)
    for operand, term in options:
        if operand not in seen:
            seen.add(operand)
            for found in _up(operand, node, seen):
                yield found if isinstance(found, Refuse) else (found[0], [*found[1], term])


_PARTS = VIEWS | TRANSPOSES | {"", "split", "split_with_sizes", "chunk", "unbind", "slice"}
_PARTS |= {"select", "topk", "relu", "gelu", "silu", "tanh"}


def _end(node: fx.Node, below: fx.Node) -> Refuse:
    """Why the way up ends at ``node``."""
    name = op_name(node)
    if node.op == "placeholder":
        return Refuse(
            "CROSS_GRAPH", "the logits come into this graph from outside (a graph break)", node
        )
    while name in _PARTS:
        if node.op != "call_function" or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
        name = op_name(node)
    if name in ("linear", "convolution", "conv2d", "addmm", "conv1d", "batch_norm"):
        return Refuse(
            "NOT_ATTENTION:router", "softmax of a projection, not of queries and keys", node
        )
    if node.op != "call_function" or name in ("embedding", "layer_norm", "mean", "sum"):
        return Refuse("NOT_ATTENTION:pooling", "softmax of something that is no product", below)
    return Refuse(
        f"UNKNOWN_SCORE_OP:{name or node.target}", "a step before softmax is not understood", node
    )


_ONWARD = CASTS | COPIES | VIEWS | TRANSPOSES | {"dropout"}


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
            steps_on = mixed or op_name(user) in _ONWARD or _drops_sink(out, user)
            if product is not None and isinstance(product.node.meta["val"], Tensor):
                onward.append((user, product))
            elif steps_on and any(_leads_to_product(u, user, 0) for u in user.users):
                onward.append((user, None))
            else:
                out.escapes.append(user)
        if not onward:
            code = "NOT_ATTENTION:gate" if node is out.softmax else "NOT_ATTENTION:weights"
            raise Refuse(code, "the softmax weights never meet values in a product", node)
        for other, _ in onward[1:]:
            out.escapes.append(other)
        node, product = onward[0]
        if product is not None:
            out.output = product
            return
        out.after.append(node)
        if op_name(node) == "dropout" and node.args[2]:
            out.dropout = float(node.args[1])  # type: ignore[arg-type]


def _drops_sink(out: Chain, node: fx.Node) -> bool:
    sinks = any(t.kind == "sink" for t in out.terms)
    return sinks and op_name(node) == "slice" and int(node.args[1]) in (-1, _last(node))  # type: ignore[arg-type]


def _last(node: fx.Node) -> int:
    return int(node.meta["val"].dim()) - 1


def _leads_to_product(node: fx.Node, before: fx.Node, depth: int) -> bool:
    mixed = mixed_map(node) is before
    if not mixed and contraction(node) is not None:
        return True
    return (
        (mixed or op_name(node) in _ONWARD)
        and depth < 8
        and any(_leads_to_product(u, node, depth + 1) for u in node.users)
    )
