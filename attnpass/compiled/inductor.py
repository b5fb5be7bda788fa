"""Softmax that stays in a graph and that inductor's own attention patterns would misread.

The serialized patterns of torch 2.13 ignore every integer and list (pytorch#195320): the axis of
softmax, the order of a permute, whether a scale is a number. Inductor rewrites such look-alikes
without a word, so its pattern matcher is switched off for a graph that holds one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx

from attnpass.graph import module_path, number, op_name, operators, permuted, source_line, value
from attnpass.matching import Added, Contraction, Refuse, ScoreStep, Tempered, reached
from attnpass.site import Decline


def misread(graph: fx.Graph, gone: Collection[fx.Node]) -> Iterator[Decline]:
    """What inductor would compile to something else; ``gone`` are rewritten softmax nodes."""
    for node in graph.nodes:
        if op_name(node) not in operators.SOFTMAX or node in gone:
            continue
        for found in reached(node):
            why = None if isinstance(found, Refuse) else _why(node, *found)
            if why:
                hint = f"inductor misreads {why}; its pattern matcher is off for this graph"
                yield Decline("INDUCTOR", module_path(node), source_line(node), hint, node.name)
                break


def _why(softmax: fx.Node, scores: Contraction, steps: list[ScoreStep]) -> str:
    """The part of this map that inductor does not look at, ``""`` where the map is canonical."""
    rank = value(softmax).dim()
    if number(softmax, 1) % rank != rank - 1:
        return "softmax over another axis than the last"
    divided = any(isinstance(step, Tempered) and step.inverse for step in steps)
    if divided and any(isinstance(step, Added) for step in steps):
        return "a division by a tensor"
    if op_name(scores.node) != "einsum" and _odd(scores.b, swapped=True):
        return "keys that are permuted"
    if op_name(scores.node) != "einsum" and _odd(scores.a, swapped=False):
        return "queries that are permuted"
    return ""


_PASSED = operators.CASTS | operators.COPIES | {"mul", "div"}
"""Operators between a product and the permute of its operand."""


def _odd(node: fx.Node, swapped: bool) -> bool:
    """Whether an operand's own permute is none of those that the patterns mean."""
    while op_name(node) in _PASSED and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if op_name(node) not in operators.TRANSPOSES:
        return False
    order = permuted(node)
    rank = len(order)
    last = [*range(rank - 2), rank - 1, rank - 2]
    heads = [0, 2, 1, *range(3, rank)] if rank > 3 else []
    return order not in ([last] if swapped else [last, heads])
