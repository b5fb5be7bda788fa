"""Softmax written by hand becomes one softmax node, so that there is one spelling to match.

A softmax of one row, ``[S]``, becomes one of ``[1, S]``: a map has rows and columns.

Soundness: ``exp(x - m) / sum(exp(x - m))`` is softmax for every ``m`` that is the same along the
axis, and the values may be summed before the division (not under autocast, which runs a product in
another dtype than a sum). Their sum is also the 1-norm of the exponentials, and what they weigh a
column of ones beside the values with. With ``exp(-m)`` added to the sum it is the
softmax of x and one logit 0, a sink whose column is dropped. A small number added to the sum
changes nothing where ``m`` is the maximum: the sum is then 1 at least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from attnpass.graph.ones_beside import beside_ones

aten = torch.ops.aten

SMALL = 1e-7
"""Up to this much of 1 may be added to a sum."""


@dataclass(frozen=True)
class _Spelled:
    """A softmax of ``logits`` over an axis; ``sink``: and over one logit 0.

    ``weighed``: the product of its exponentials and values, which are then divided by their sum.
    ``values``: those of that product where a column of ones stood beside them.
    ``base``: what is raised to the power of the logits.
    """

    logits: fx.Node
    dim: int
    sink: bool = False
    weighed: fx.Node | None = None
    values: fx.Node | None = None
    base: float = math.e


def fold_softmax(graph: fx.Graph) -> None:
    """Replace every spelling of softmax by one node, off by one included (``_quotient``)."""
    _fold_spelled(graph)
    for node in graph.nodes:
        found = value(node) if op_name(node) in operators.SOFTMAX else None
        # the operator of our own kernel has two results
        if isinstance(found, Tensor) and found.dim() == 1:
            _in_rows(graph, node)


def _in_rows(graph: fx.Graph, node: fx.Node) -> None:
    """Give a softmax of one row ``[S]`` an axis of rows, ``[1, S]``."""
    x, rest = operand(node), node.args[2:]
    with graph.inserting_before(node):
        x = call_like(graph, node, aten.unsqueeze.default, x, 0)
        weights = call_like(graph, node, node.target, x, 1, *rest)
        row = call_like(graph, node, aten.squeeze.dim, weights, 0)
    weights.kwargs = node.kwargs
    node.replace_all_uses_with(row)
    graph.erase_node(node)


def _fold_spelled(graph: fx.Graph) -> None:
    """The spellings of more than one operator."""
    found_at = {node: found for node in graph.nodes if (found := _spelled(node)) is not None}
    unsafe = set(written(graph)) if found_at else set()
    for node, found in found_at.items():
        read = {node, found.logits, *node.all_input_nodes}
        if found.weighed is not None:
            read |= {found.weighed, *found.weighed.all_input_nodes}
        if unsafe & read:
            continue
        with graph.inserting_before(node):
            if found.base != math.e:
                factor = math.log(found.base)
                x = call_like(graph, found.logits, aten.mul.Tensor, found.logits, factor)
                found = replace(found, logits=x)
            new = _sunk(graph, found) if found.sink else _plain(graph, found)
            if found.weighed is not None:
                new.meta = {**found.logits.meta}
                new = _weighed(graph, found.weighed, new, found.values)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _plain(graph: fx.Graph, found: _Spelled) -> fx.Node:
    return graph.call_function(aten.softmax.int, (found.logits, found.dim))


def _sunk(graph: fx.Graph, found: _Spelled) -> fx.Node:
    """The softmax of the logits and a zero behind them, without the zero's column."""
    x, dim = found.logits, found.dim
    first = call_like(graph, x, aten.slice.Tensor, x, dim, 0, 1)
    zero = call_like(graph, x, aten.zeros_like.default, first)
    logits = call_like(graph, x, aten.cat.default, [x, zero], dim)
    weights = call_like(graph, x, aten.softmax.int, logits, dim)
    return call_like(graph, x, aten.slice.Tensor, weights, dim, 0, -1)


def unlike_softmax(exponential: fx.Node) -> str:
    """Why an exponential of logits is no part of a softmax."""
    for user in exponential.users:
        if op_name(user) == "linalg_vector_norm" and user.args[1] != 1:
            return f"exp of logits that is divided by its {user.args[1]}-norm: not softmax"
        if op_name(user) in ("sum", "linalg_vector_norm") and any(map(_floor, user.users)):
            return (
                "exp of logits, without their maximum subtracted, whose sum is kept above a small"
                " number: not softmax where it is smaller"
            )
    return "exp of logits that is not divided by its sum alone: not softmax"


def _spelled(node: fx.Node) -> _Spelled | None:
    """The softmax that ``node`` computes, else None."""
    for top, bottom in _quotients(node):
        found = _quotient(top, bottom)
        if found is not None:
            return found
        found = _late(top, bottom)
        if found is not None:
            return found
    if op_name(node) != "exp" or node.kwargs:
        return None
    inner: Any = node.args[0]
    if op_name(inner) == "log_softmax" and len(inner.args) == 2 and not inner.kwargs:
        return _Spelled(inner.args[0], int(inner.args[1]))
    if op_name(inner) == "sub" and not inner.kwargs:
        dim = _along(inner.args[1], "logsumexp", inner.args[0])
        return None if dim is None else _Spelled(inner.args[0], dim)
    return None


def _quotients(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What a node divides by what: a division, or a product with a reciprocal."""
    if node.kwargs or len(node.args) < 2:
        return
    a, b = node.args[:2]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return
    if op_name(node) == "div":
        yield a, b
    if op_name(node) == "mul":
        for x, y in ((a, b), (b, a)):
            if op_name(y) == "reciprocal":
                yield x, operand(y)


def _quotient(top: fx.Node, bottom: fx.Node) -> _Spelled | None:
    """The softmax ``top / bottom``: an exponential by what it sums up to."""
    if op_name(top) not in ("exp", "exp2") or top.kwargs:
        return None
    x, extra = operand(top), 0.0
    base = 2 if op_name(top) == "exp2" else math.e
    while op_name(bottom) in ("expand", "expand_as", "clamp_min", "clamp", "add"):
        if op_name(bottom) in ("expand", "expand_as"):
            bottom = operand(bottom)
            continue
        more = _floor(bottom)
        if more is None:
            break
        extra = max(extra, more[1])
        bottom = more[0]
    sink = False
    if op_name(bottom) == "add" and not bottom.kwargs:
        total = _total(top, bottom)
        if total is not None:
            bottom, sink = total, True
    dim = _along(bottom, "sum", top)
    dim = _along_norm(bottom, top) if dim is None else dim
    if dim is None or (extra and not _is_shifted(x, dim)):
        return None
    if not sink or op_name(x) != "sub":
        return _Spelled(x, dim, sink, base=base)
    one = _one_along(operand(x, 1), x, dim)
    return _Spelled(operand(x), dim, sink, base=base) if one else None


def _late(top: fx.Node, bottom: fx.Node) -> _Spelled | None:
    """The softmax in ``(exp(x) @ v) / sum(exp(x))``: the division comes after the values."""
    beside = beside_ones(top, bottom)
    product, values = beside or (top, None)
    weights = _first(product)
    if weights is None or value(product).dim() != value(weights).dim():
        return None
    if under_autocast(top) or len({value(x).dtype for x in (top, bottom, weights)}) > 1:
        return None
    found = _quotient(weights, bottom) if beside is None else _exponential(weights)
    last = -1 if found is None else found.dim % value(weights).dim()
    if found is None or last != value(weights).dim() - 1:
        return None
    return replace(found, weighed=product, values=values)


def _exponential(weights: fx.Node) -> _Spelled | None:
    """The softmax over the last axis whose exponentials ``weights`` are."""
    if op_name(weights) not in ("exp", "exp2") or weights.kwargs:
        return None
    return _Spelled(operand(weights), -1, base=2 if op_name(weights) == "exp2" else math.e)


def _first(product: fx.Node) -> fx.Node | None:
    """The first operand of a product that sums over its last axis and keeps the others' order."""
    if len(product.all_input_nodes) != 2:
        return None
    if op_name(product) in ("matmul", "mm", "bmm"):
        return operand(product)
    if op_name(product) != "einsum":
        return None
    left, _, out = str(product.args[0]).replace(" ", "").partition("->")
    a, _, b = left.partition(",")
    plain = "." not in left and len(set(a)) == len(a) and len(set(b)) == len(b)
    if not plain or not out or a[-1] not in b or out[:-1] != a[:-1] or out[-1] in a:
        return None
    return product.all_input_nodes[0]


def _weighed(
    graph: fx.Graph, product: fx.Node, weights: fx.Node, instead: fx.Node | None
) -> fx.Node:
    """A product of exponentials and values with weights, and other values, in their places."""
    weighed, values = product.all_input_nodes
    swap = {weighed: weights, values: instead or values}
    args = fx.map_arg(product.args, swap.__getitem__)
    return graph.call_function(product.target, args)  # type: ignore[arg-type]


def _floor(node: fx.Node) -> tuple[fx.Node, float] | None:
    """What a node keeps above a small number, or adds one to, and that number."""
    more = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    known = isinstance(more, float) and 0 < more <= SMALL and len(node.args) <= 2
    if not known or set(node.kwargs) - {"min"} or not isinstance(node.args[0], fx.Node):
        return None
    assert isinstance(more, float)
    return node.args[0], more


def _total(top: fx.Node, node: fx.Node) -> fx.Node | None:
    """The sum in ``1 + sum(exp(x))``, or in ``exp(-m) + sum(exp(x - m))``."""
    a, b = node.args
    x = operand(top)
    if b == 1 and op_name(x) != "sub":
        return operand(node)
    for total, other in ((a, b), (b, a)):
        shift = operand(x, 1) if op_name(x) == "sub" and isinstance(x.args[1], fx.Node) else None
        same = isinstance(other, fx.Node) and op_name(other) == op_name(top)
        if isinstance(total, fx.Node) and same and shift is not None:
            inner = operand(other)  # type: ignore[arg-type]
            if op_name(inner) == "neg" and operand(inner) is shift:
                return total
    return None


def _is_shifted(x: fx.Node, dim: int) -> bool:
    """Whether the maximum along an axis was subtracted."""
    if op_name(x) != "sub" or x.kwargs or not isinstance(x.args[1], fx.Node):
        return False
    most = operand(x, 1)
    while op_name(most) in ("detach", "expand"):
        most = operand(most)
    if getattr(most.target, "__name__", "") == "getitem":
        most = operand(most)  # of max over an axis: values and places
    rank = value(x).dim()
    if op_name(most) not in ("amax", "max") or most.args[0] is not x.args[0] or len(most.args) < 2:
        return False
    kept = len(most.args) > 2 and most.args[2] is True
    return kept and [d % rank for d in numbers(most.args[1])] == [dim % rank]


def _one_along(m: fx.Node, x: fx.Node, dim: int) -> bool:
    """Whether ``m`` is the same along an axis of ``x``."""
    missing = value(x).dim() - value(m).dim()
    at = dim % value(x).dim() - missing
    return at < 0 or value(m).shape[at] == 1


def _converts(node: fx.Node) -> bool:
    """Whether a reduction is asked for more than its axes: another dtype, say."""
    return any(k != "dtype" or x != value(operand(node)).dtype for k, x in node.kwargs.items())


def _along_norm(node: fx.Node, reduced: fx.Node) -> int | None:
    """The one axis along which ``node`` is the 1-norm of exponentials, kept with size 1."""
    if op_name(node) != "linalg_vector_norm" or _converts(node) or len(node.args) != 4:
        return None
    source, order, dims, kept = node.args
    if source is not reduced or order != 1 or kept is not True or len(numbers(dims)) != 1:
        return None
    return numbers(dims)[0]


def _along(node: Any, name: str, reduced: Any) -> int | None:
    """The one axis over which ``node`` reduces ``reduced``, kept with size 1; else None."""
    if not isinstance(node, fx.Node):
        return None
    put = number(node, 1) if op_name(node) == "unsqueeze" else None
    if put is not None:
        node = operand(node)
    if op_name(node) != name or _converts(node):
        return None
    source, dims, keepdim = (*node.args, None, None)[:3]
    if source is not reduced or not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    (dim,) = numbers(dims)
    if keepdim is True and put is None:
        return dim
    rank = value(reduced).dim()
    dropped = put is not None and keepdim is not True
    return dim if dropped and put is not None and put % rank == dim % rank else None
