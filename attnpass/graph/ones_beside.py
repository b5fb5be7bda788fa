"""A column of ones beside the values: what a product weighs it with is the sum of the weights."""

from __future__ import annotations

from typing import Any

from torch import fx

from attnpass.graph import operators
from attnpass.graph.nodes import op_name, operand, value


def beside_ones(top: fx.Node, bottom: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The product whose last column ``bottom`` holds and whose others ``top`` holds, and values.

    The last column of the product's second operand is of ones, the others are the values.
    """
    while op_name(bottom) in ("expand", "expand_as"):
        bottom = operand(bottom)
    values, ones = _columns(top), _columns(bottom)
    if values is None or ones is None or values[0] is not ones[0]:
        return None
    product, size = values[0], value(values[0]).shape[-1]
    if values[1:] != (0, ones[1]) or ones[1:] != (size - 1, size):
        return None
    if len(product.all_input_nodes) != 2 or not _last_of_both(product):
        return None
    found = _without_ones(product.all_input_nodes[1])
    return None if found is None else (product, found)


def _last_of_both(product: fx.Node) -> bool:
    """Whether the last axis of a product is that of its second operand."""
    if op_name(product) != "einsum":
        return op_name(product) in ("matmul", "mm", "bmm")
    left, _, out = str(product.args[0]).replace(" ", "").partition("->")
    return out != "" and left[-1] == out[-1]


def _columns(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The tensor whose columns a node holds, from which one up to which; None of other nodes."""
    if getattr(node.target, "__name__", "") == "getitem":
        return _part(node)
    if op_name(node) != "slice" or node.kwargs:
        return None
    source, given = operand(node), node.args[1:]
    spelled: list[Any] = [*given, *[0, None, None, 1][len(given) :]]
    dim, start, end, step = spelled
    size, known = value(source).shape[-1], (int, type(None))
    if dim not in (-1, value(source).dim() - 1) or step != 1 or not isinstance(size, int):
        return None
    if not isinstance(start, known) or not isinstance(end, known):
        return None
    begin, stop, _ = slice(start, end).indices(size)
    return source, begin, stop


def _part(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The same of a part of a tensor that was split along its last axis."""
    split, i = operand(node), node.args[1]
    if op_name(split) not in ("split", "split_with_sizes") or len(split.args) != 3:
        return None
    last = value(operand(split)).dim() - 1
    sizes = [part.shape[-1] for part in split.meta["val"]]
    if split.args[2] not in (-1, last) or not all(isinstance(n, int) for n in sizes):
        return None
    assert isinstance(i, int)
    return operand(split), sum(sizes[:i]), sum(sizes[: i + 1])


def _without_ones(node: fx.Node) -> fx.Node | None:
    """The values behind whose last axis one column of ones was put; else None."""
    name, args = op_name(node), node.args
    if node.kwargs:
        return None
    if (name, *args[1:]) in (("pad", [0, 1], "constant", 1.0), ("constant_pad_nd", [0, 1], 1.0)):
        return operand(node)
    if name != "cat" or len(args) != 2 or args[1] not in (-1, value(node).dim() - 1):
        return None
    parts: Any = args[0]
    if len(parts) != 2 or value(parts[0]).dtype != value(parts[1]).dtype:
        return None
    one = value(parts[1]).shape[-1]
    return parts[0] if isinstance(one, int) and one == 1 and _is_ones(parts[1]) else None


def _is_ones(node: fx.Node) -> bool:
    """Whether a tensor is filled with ones."""
    while op_name(node) in operators.SHAPES | operators.CASTS:
        node = operand(node)
    name = op_name(node)
    if name in ("full", "full_like", "new_full"):
        return bool(node.args[2 if name == "new_full" else 1] == 1)
    return name in ("ones", "ones_like", "new_ones")
