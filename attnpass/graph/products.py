"""Products that are not spelled as one become a product of two tensors.

``(q[..., :, None, :] * k[..., None, :, :]).sum(-1)`` is ``q k^T``: the spelling that has a name.
So are ``tensordot`` and ``inner``, a linear layer or ``addmm`` whose weight is an activation, and
an einsum of three operands one of which is a factor on another.

Soundness: the result sums the same terms. Conditions:

1. Each axis of a multiplication has the same size in both operands, or provably size 1 in one.
2. What it sums is in both operands, and each brings an axis of its own to the result.
3. The dtype is a floating one and the same everywhere; nothing is written in place.
4. Autocast is off there: it would run a product in another dtype than a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import operators
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
    """Replace every spelling of a product by a product of two tensors."""
    found = [node for node in graph.nodes if _may_be_product(node)]
    unsafe = set(written(graph)) if found else set()
    for node in found:
        read = {node, *node.all_input_nodes}
        if op_name(node) == "sum":
            read |= {*operand(node).all_input_nodes}
        if unsafe.isdisjoint(read):
            with graph.inserting_before(node):
                new = _SPELLINGS[op_name(node)](graph, node)
            if new is not None:
                new.meta = dict(node.meta)
                node.replace_all_uses_with(new)
                graph.erase_node(node)


def _may_be_product(node: fx.Node) -> bool:
    """Whether a node may spell a product: conditions 3, but for what is written, and 4."""
    name = op_name(node)
    if name not in _SPELLINGS or not isinstance(node.meta.get("val"), Tensor):
        return False
    if name in ("linear", "addmm") and not _is_projected(operand(node, 1 + (name == "addmm"))):
        return False
    if name == "einsum" and len(node.all_input_nodes) != 3:
        return False
    given = node.all_input_nodes
    if name == "sum":
        found = _factors(node)
        if found is None:
            return False
        given = [*found[:2]]
    dtypes = {value(x).dtype for x in (node, *given)}
    return len(dtypes) == 1 and dtypes.pop().is_floating_point and not under_autocast(node)


def _sum(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A sum of a broadcast multiplication."""
    found = _factors(node)
    return None if found is None else _einsum(graph, node, *found)


def _tensordot(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """``tensordot``, or ``inner``, which sums over the last axes."""
    a, b = operand(node), operand(node, 1)
    ranks = value(a).dim(), value(b).dim()
    over = (node.args[2:4]) if op_name(node) == "tensordot" else ([-1], [-1])
    mine, other = ([d % n for d in numbers(x)] for x, n in zip(over, ranks, strict=True))
    letters = ascii_letters[: ranks[0]]
    fresh = iter(ascii_letters[ranks[0] :])
    spelled = "".join(
        letters[mine[other.index(i)]] if i in other else next(fresh) for i in range(ranks[1])
    )
    out = [c for c in letters + spelled if (c in letters) != (c in spelled)]
    equation = f"{letters},{spelled}->{''.join(out)}"
    return call_like(graph, node, aten.einsum.default, equation, [a, b])


def _linear(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A linear layer without bias whose weight is an activation."""
    x, weight = operand(node), operand(node, 1)
    biased = len(node.args) > 2 and node.args[2] is not None
    if biased or node.kwargs or value(x).dim() < 2:
        return None
    return call_like(
        graph, node, aten.matmul.default, x, call_like(graph, node, aten.t.default, weight)
    )


def _addmm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """``addmm`` of two activations: the sum of a tensor and their product."""
    added, a, b = (operand(node, i) for i in range(3))
    product = call_like(graph, node, aten.matmul.default, a, b)
    for name, x in (("alpha", product), ("beta", added)):
        factor = node.kwargs.get(name, 1)
        if factor != 1:
            x = call_like(graph, node, aten.mul.Tensor, x, factor)
        product, added = (x, added) if name == "alpha" else (product, x)
    return call_like(graph, node, aten.add.Tensor, product, added)


def _is_projected(node: fx.Node) -> bool:
    """Whether a tensor is made from what a layer made: no weight, nor made of weights alone."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function":
            continue
        if op_name(node) in operators.PROJECTIONS:
            return True
        seen.add(node)
        stack.extend(node.all_input_nodes)
    return False


def _three(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """An einsum of three operands, one of them a factor on another one."""
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    left, arrow, out = equation.partition("->")
    spelled = left.split(",")
    if len(operands) != 3 or not arrow or "." in equation or len(spelled) != 3:
        return None
    if any(len(set(x)) != len(x) for x in spelled):
        return None
    for i in reversed(range(3)):
        for j in reversed([x for x in range(3) if x != i]):
            if set(spelled[i]) < set(spelled[j]):
                factor = _aligned(graph, node, operands[i], spelled[i], spelled[j])
                operands[j] = call_like(graph, node, aten.mul.Tensor, operands[j], factor)
                rest = [x for x in range(3) if x != i]
                equation = f"{','.join(spelled[x] for x in rest)}->{out}"
                given = [operands[x] for x in rest]
                return call_like(graph, node, aten.einsum.default, equation, given)
    return None


def _aligned(graph: fx.Graph, like: fx.Node, x: Any, letters: str, wanted: str) -> fx.Node:
    """A tensor with its axes in the order of ``wanted``, size 1 where it lacks one."""
    order = [letters.index(c) for c in wanted if c in letters]
    if order != sorted(order):
        x = call_like(graph, like, aten.permute.default, x, order)
    for i, c in enumerate(wanted):
        if c not in letters:
            x = call_like(graph, like, aten.unsqueeze.default, x, i)
    found: fx.Node = x
    return found


_SPELLINGS: dict[str, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    "sum": _sum,
    "tensordot": _tensordot,
    "inner": _tensordot,
    "linear": _linear,
    "addmm": _addmm,
    "einsum": _three,
}


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
    """The same, but for a sum that keeps its axes."""
    return None if len(node.args) > 2 else broadcast(node)


def _einsum(graph: fx.Graph, node: fx.Node, a: Any, b: Any, dims: list[int]) -> fx.Node | None:
    """The same sum of two tensors without their axes of size 1; None where it is no product."""
    rank = max(value(a).dim(), value(b).dim())
    letters = ascii_letters[:rank]
    ones = [{i for i in range(rank) if _is_one(x, i - rank)} for x in (a, b)]
    # each owns the axes where only the other has size 1, or where the other's was put in
    both = ones[0] & ones[1]
    put = [_put_in(x, rank) & both for x in (a, b)]
    owned = [(ones[1] - ones[0]) | (put[1] - put[0]), (ones[0] - ones[1]) | (put[0] - put[1])]
    if not owned[0] or not owned[1] or (owned[0] | owned[1] | ones[0]) & set(dims):
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


def _put_in(x: fx.Node, rank: int) -> set[int]:
    """The axes that ``unsqueeze`` put into a tensor, as places among ``rank`` axes."""
    axes, found = list(range(rank - value(x).dim(), rank)), set()
    while op_name(x) == "unsqueeze" and not x.kwargs:
        found.add(axes.pop(number(x, 1)))
        x = operand(x)
    return found


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
