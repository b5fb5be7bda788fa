"""Where inductor's own attention matcher would misread what is left: it is then switched off.

Its serialized patterns ignore every integer and list (torch 2.13, pytorch#195320): the axis of
softmax, the order of a permute, whether a scale is a number. What it takes for attention and is
not, it rewrites without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import fx

from attnpass.graph import (
    CASTS,
    COPIES,
    SOFTMAX,
    TRANSPOSES,
    module_path,
    op_name,
    permuted,
    source_line,
)
from attnpass.matching import Contraction, Refuse, Term, reached
from attnpass.site import Decline


def misread(graph: fx.Graph, gone: Collection[fx.Node]) -> Iterator[Decline]:
    """What inductor would compile to something else; ``gone`` are rewritten softmax nodes."""
    for node in graph.nodes:
        if op_name(node) not in SOFTMAX or node in gone:
            continue
        for found in reached(node):
            why = None if isinstance(found, Refuse) else _why(node, *found)
            if why:
                hint = f"inductor misreads {why}; its pattern matcher is off for this graph"
                yield Decline("INDUCTOR", module_path(node), source_line(node), hint, node.name)
                break


def _why(softmax: fx.Node, scores: Contraction, terms: list[Term]) -> str:
    """What about this map inductor does not look at, ``""`` where it is canonical."""
    rank = softmax.meta["val"].dim()
    if int(softmax.args[1]) % rank != rank - 1:  # type: ignore[arg-type]
        return "softmax over another axis than the last"
    kinds = {term.kind for term in terms if term.kind != "temper" or term.flip}
    if kinds >= {"temper", "add"}:
        return "a division by a tensor"
    if op_name(scores.node) != "einsum" and _odd(scores.b, swapped=True):
        return "keys that are permuted"
    if op_name(scores.node) != "einsum" and _odd(scores.a, swapped=False):
        return "queries that are permuted"
    return ""


def _odd(node: Any, swapped: bool) -> bool:
    """Whether an operand's own permute is none of those that the patterns mean."""
    while op_name(node) in CASTS | COPIES | {"mul", "div"} and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if op_name(node) not in TRANSPOSES:
        return False
    order = permuted(node)
    rank = len(order)
    last = [*range(rank - 2), rank - 1, rank - 2]
    heads = [0, 2, 1, *range(3, rank)] if rank > 3 else []
    return order not in ([last] if swapped else [last, heads])
