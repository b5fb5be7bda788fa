"""The surroundings of an attention: its projections, its block's output, its grid of patches.

Shapes: B batch, T queries, D width.
"""

from __future__ import annotations

import math

from torch import fx

from attnpass.graph import Opaque, op_name, operators, value
from attnpass.matching.factors import Axis, kinds
from attnpass.matching.facts import GraphFacts

_TO_BLOCK_OUTPUT = operators.CASTS | operators.COPIES | operators.VIEWS | {"transpose", "permute"}
"""Operators between the attention's result and the output of its projection."""


def block_output(
    facts: GraphFacts, out: fx.Node, rows: Axis
) -> tuple[fx.Node | None, tuple[fx.Node, ...]]:
    """The projected output ``[B, T, D]`` and its projection's parameters; else None and none.

    Every node on the way has one user: a block that stands for it replaces nothing else.
    """
    node, found = out, None
    projection: tuple[fx.Node, ...] = ()
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        name = op_name(node)
        linear = name in ("linear", "addmm") or isinstance(node.target, Opaque)
        if linear and projected(node) is not None and not projection:
            others = [n for n in node.all_input_nodes if n is not before]
            projection = projection_weights(facts, others) or tuple(others)
        elif name not in _TO_BLOCK_OUTPUT and not isinstance(before.target, Opaque):
            break
        axes = facts.axes.get(node, ())
        if projection and len(axes) == 3 and axes[1] == rows and kinds(axes[2]) == {"feature"}:
            found = node
    if found is None or not isinstance(value(found).shape[-1], int):
        return None, ()
    return found, tuple(n for n in projection if n in facts.parameters)


def projection_weights(facts: GraphFacts, roots: list[fx.Node]) -> tuple[fx.Node, ...]:
    """Parameters of the projections that make ``roots`` (q, k and v), in order of first use."""
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    stack = list(reversed(roots))
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in facts.parameters:
            found[node] = None
        elif (at := projected(node)) is not None:
            weights = [n for n in node.all_input_nodes if n is not node.args[at]]
            found.update(dict.fromkeys(n for n in weights if n in facts.parameters))
            stack.extend(n for n in reversed(weights) if n not in facts.parameters)
        else:
            stack.extend(reversed(node.all_input_nodes))
    return tuple(found)


def projected(node: fx.Node) -> int | None:
    """The argument of a projection that is no weight; None where a node is no projection."""
    if isinstance(node.target, Opaque):
        return node.target.projected
    if op_name(node) not in operators.PROJECTIONS:
        return None
    return 1 if op_name(node) in ("addmm", "embedding") else 0


def patch_grid(tokens: Axis) -> tuple[tuple[int, int] | None, int]:
    """Rows and columns of patch tokens and the tokens before them, proven by a convolution."""
    if len(tokens) == 1 and tokens[0].parts:
        *before, last = tokens[0].parts
        grid, _ = patch_grid(last)
        sizes = [
            math.prod(f.size for f in part) if all(isinstance(f.size, int) for f in part) else None
            for part in before
        ]
        if grid is None or None in sizes:
            return None, 0
        return grid, sum(x for x in sizes if x is not None)
    if len(tokens) == 2 and all(f.kind == "token" and isinstance(f.size, int) for f in tokens):
        return (tokens[0].size, tokens[1].size), 0
    return None, 0
