"""Operands of a site brought to ``[B, H, rows, columns]``, and results brought back.

Shapes: B batch, H heads, T queries, dv value dim. The layouts themselves are proven by
``matching.layout``; here they become permutes and reshapes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from attnpass.graph import value
from attnpass.matching import SHARED, Lead, Operand
from attnpass.rewrite.writer import Writer

aten = torch.ops.aten


def canonical_operand(w: Writer, x: Operand, beside: Sequence[Operand] = ()) -> fx.Node:
    """An operand as ``[B, H, rows, columns]``, expanded as far as those ``beside`` it are."""
    node, permutation = _expanded(w, x, beside), x.permutation
    own = [i for i in permutation if i != SHARED]
    if own != list(range(len(own))):
        node = w.call(aten.permute.default, node, own)
    for at in (i for i, axis in enumerate(permutation) if axis == SHARED):
        node = w.call(aten.unsqueeze.default, node, at)
    return canonical(w, node, x.lead)


def _expanded(w: Writer, x: Operand, beside: Sequence[Operand]) -> fx.Node:
    """An operand with each leading axis of size 1 expanded to that of an operand beside it."""
    node, shape = w.read(x.node), value(x.node).shape
    sizes: list[Any] = [-1] * len(shape)
    for i, axis in enumerate(x.permutation[: x.lead.count]):
        if axis == SHARED or not _is_one(shape[axis]):
            continue
        for other in beside:
            at = other.permutation[i]
            if at != SHARED and not _is_one(value(other.node).shape[at]):
                size = value(other.node).shape[at]
                whole = isinstance(size, int)
                read = (aten.sym_size.int, w.read(other.node), at)
                sizes[axis] = size if whole else w.call(*read)
                break
    return node if set(sizes) == {-1} else w.call(aten.expand.default, node, sizes)


def _is_one(size: Any) -> bool:
    """Whether a size is 1 at every call; a symbolic one never is."""
    return isinstance(size, int) and size == 1


def canonical(w: Writer, x: fx.Node, lead: Lead) -> fx.Node:
    """Leading axes, in the order of ``lead``, merged to batch and heads."""
    if lead.count == 0:
        return w.call(aten.unsqueeze.default, w.call(aten.unsqueeze.default, x, 0), 0)
    if lead.count == 1:
        if lead.heads == 1:
            return w.call(aten.unsqueeze.default, x, 1)
        return w.call(aten.unflatten.int, x, 0, [-1, lead.heads])
    if lead.split >= 0:
        x = w.call(aten.unflatten.int, x, lead.split, [-1, lead.heads])
        x = w.call(aten.permute.default, x, _heads_last(lead))
        return w.call(aten.flatten.using_ints, x, 0, lead.count - 1)
    if lead.paired:
        return x if lead.count == 2 else w.call(aten.flatten.using_ints, x, 0, lead.count - 2)
    flat = w.call(aten.flatten.using_ints, x, 0, lead.count - 1)
    return w.call(aten.unsqueeze.default, flat, 1)


def restored(
    w: Writer, out: fx.Node, target: Operand, source: Operand, dtype: torch.dtype
) -> fx.Node:
    """``[B, H, T, dv]`` in the layout and dtype of the node that it replaces.

    Args:
        out: of ``dtype``. target: the replaced node with its layout.
        source: an operand with the same leading axes, from which sizes are read.
    """
    permutation, like = target.permutation, value(target.node)
    out = _leading_axes_restored(w, out, target, source)
    if permutation != tuple(range(len(permutation))):
        inverse = [permutation.index(i) for i in range(len(permutation))]
        out = w.call(aten.permute.default, out, inverse)
    return out if dtype == like.dtype else w.call(aten.to.dtype, out, like.dtype)


def _leading_axes_restored(w: Writer, out: fx.Node, target: Operand, source: Operand) -> fx.Node:
    """Batch and heads split and merged back to the leading axes of ``target``, in its order."""
    lead, permutation, like = target.lead, target.permutation, value(target.node)
    if lead.count == 0:
        return w.call(aten.squeeze.dims, out, [0, 1])
    if lead.count == 1:
        return w.call(aten.flatten.using_ints, out, 0, 1)
    if lead.split >= 0:
        sizes = _sizes(w, [like.shape[i] for i in permutation[: lead.count]], source)
        own = sizes[lead.split]  # batch and heads together
        if isinstance(own, fx.Node):
            sizes[lead.split] = w.call(operator.floordiv, own, lead.heads)
        elif own != -1:
            sizes[lead.split] = own // lead.heads
        out = w.call(aten.unflatten.int, out, 0, sizes)
        order = _heads_last(lead)
        out = w.call(aten.permute.default, out, [order.index(i) for i in range(len(order))])
        return w.call(aten.flatten.using_ints, out, lead.split, lead.split + 1)
    if lead.count == 2 and lead.paired:
        return out
    if not lead.paired:
        out = w.call(aten.squeeze.dim, out, 1)
    batch = lead.count - 1 if lead.paired else lead.count
    shape: list[Any] = [like.shape[i] for i in permutation[:batch]]
    return w.call(aten.unflatten.int, out, 0, _sizes(w, shape, source))


def _sizes(w: Writer, shape: list[Any], source: Operand) -> list[Any]:
    """Sizes as numbers where known, one -1, else read off ``source``."""
    unknown = [i for i, s in enumerate(shape) if not isinstance(s, int)]
    if len(unknown) <= 1:
        return [-1 if i in unknown else s for i, s in enumerate(shape)]
    node, at = w.read(source.node), source.permutation
    return [w.call(aten.sym_size.int, node, at[i]) for i in range(len(shape))]


def _heads_last(lead: Lead) -> list[int]:
    """The order that brings split-off heads behind the other leading axes."""
    rest = [i for i in range(lead.count + 1) if i != lead.split + 1]
    return [*rest, lead.split + 1, lead.count + 1, lead.count + 2]
