"""A product written as a multiplication of broadcast tensors and a sum becomes one einsum.

``(q[..., :, None, :] * k[..., None, :, :]).sum(-1)`` is ``q k^T``: the spelling that has a name.

Soundness: the einsum sums the same terms. Conditions:

1. Each axis of the multiplication has the same size in both operands, or provably size 1 in one.
2. What is summed is in both operands, and each brings an axis of its own to the result.
3. The dtype is a floating one and the same everywhere; nothing is written in place.
4. Autocast is off there: it would run a product in another dtype than a sum.
"""

from __future__ import annotations

from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph.aliasing import written
from attnpass.graph.nodes import (
    call_like,
    number,
    numbers,
    op_name,
    operand,
    under_autocast,
    value,
)

aten = torch.ops.aten


def fold_products(graph: fx.Graph) -> None:
    """Replace every sum of a broadcast multiplication by an einsum of two tensors."""
    found = {node: parts for node in graph.nodes if (parts := _factors(node)) is not None}
    unsafe = set(written(graph)) if found else set()
    for node, (a, b, dims) in found.items():
        if unsafe & {node, operand(node), a, b}:
            continue
        with graph.inserting_before(node):
            new = _einsum(graph, node, a, b, dims)
        if new is not None:
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def broadcast(node: fx.Node) -> tuple[fx.Node, fx.Node, list[int]] | None:
    """The two tensors whose product ``node`` sums, and over which axes; None for anything else.

    The axes are those of the product, which the sum may keep with size 1.
    """
    if op_name(node) != "sum" or node.kwargs:
        return None
    product, dims = (*node.args, None)[:2]
    if not isinstance(product, fx.Node) or op_name(product) != "mul" or len(product.users) != 1:
        return None
    if not isinstance(dims, (list, tuple)) or not dims:
        return None
    a, b = product.args[:2]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    if not all(isinstance(x.meta.get("val"), Tensor) for x in (product, a, b)):
        return None
    rank = value(product).dim()
    return a, b, sorted(d % rank for d in numbers(dims))


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node, list[int]] | None:
    """The same where its dtypes allow an einsum (condition 3)."""
    found = broadcast(node)
    if found is None or len(node.args) > 2:  # axes that are kept
        return None
    dtypes = {value(x).dtype for x in (node, *found[:2])}
    return found if len(dtypes) == 1 and dtypes.pop().is_floating_point else None


def _einsum(graph: fx.Graph, node: fx.Node, a: Any, b: Any, dims: list[int]) -> fx.Node | None:
    """The same sum of two tensors without their axes of size 1; None where it is no product."""
    rank = max(value(a).dim(), value(b).dim())
    letters = ascii_letters[:rank]
    ones = [{i for i in range(rank) if _is_one(x, i - rank)} for x in (a, b)]
    owned = [ones[1] - ones[0], ones[0] - ones[1]]  # where only the other has size 1
    if not owned[0] or not owned[1] or (owned[0] | owned[1] | ones[0]) & set(dims):
        return None
    if under_autocast(node):
        return None
    operands, spelled = [], []
    for x, other in ((a, owned[1]), (b, owned[0])):
        missing = rank - value(x).dim()
        drop = {i - missing for i in other if i >= missing}
        operands.append(_without(graph, node, x, drop))
        spelled.append("".join(letters[i] for i in range(missing, rank) if i not in other))
    if not all(letters[i] in spelled[0] and letters[i] in spelled[1] for i in dims):
        return None
    kept = "".join(c for i, c in enumerate(letters) if i not in dims)
    return call_like(graph, node, aten.einsum.default, f"{','.join(spelled)}->{kept}", operands)


def _without(graph: fx.Graph, like: fx.Node, x: fx.Node, drop: set[int]) -> fx.Node:
    """A tensor without some axes of size 1: the one that they were put into, where it is known."""
    while drop and op_name(x) == "unsqueeze" and not x.kwargs:
        at = number(x, 1) % value(x).dim()
        if at not in drop:
            break
        drop = {i - (i > at) for i in drop if i != at}
        x = operand(x)
    return call_like(graph, like, aten.squeeze.dims, x, sorted(drop)) if drop else x


def _is_one(x: fx.Node, dim: int) -> bool:
    """Whether a tensor has size 1 along an axis counted from the right, or no such axis."""
    shape = value(x).shape
    if -dim > len(shape):
        return True
    return isinstance(shape[dim], int) and shape[dim] == 1
