"""Whether a graph that was captured for several items computes the same for one.

torch takes a size of 1 for a number, and any other for a symbol that is at least 2: a graph that
was captured for several items says nothing of one. It is captured once more for one item.

Soundness (the graph of several items, run on one, is the graph of one). Conditions:

1. Both graphs have the same operators, forms and constants in the same order, slices of everything
   aside; their inputs are the same parameters, arguments and constants, and they give the same
   results.
2. Every number among the operators' arguments, and every size of a result, is equal where the
   symbols of the first graph have the sizes that the second one has there: with the batch 1, and
   all other sizes as they are. Numbers are sizes, their sums and products, and quotients by a
   constant: what torch may have simplified because the batch is at least 2 is refused.
3. A call of one item fulfils the conditions under which the second graph was captured.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.torch_internals import expression

_END = 2**63 - 1
"""The end of a slice of everything."""

Sizes = Mapping[Any, Any]
"""Symbols of the first graph to the sizes that the second one has in their places."""


def first_items(leaves: list[Any]) -> list[Any] | None:
    """The leaves with the first item of every batch; None where there is no batch of several.

    A batch is a tensor whose first axis is as long as that of the first tensor.
    """
    sizes = [x.shape[0] for x in leaves if isinstance(x, Tensor) and x.dim()]
    if not sizes or sizes[0] < 2:
        return None
    made: dict[int, Tensor] = {}
    for x in leaves:
        if isinstance(x, Tensor) and x.dim() and x.shape[0] == sizes[0] and id(x) not in made:
            made[id(x)] = x.detach()[:1].clone().requires_grad_(x.requires_grad)
    return [made.get(id(x), x) for x in leaves]


def sizes_between(several: Mapping[int, Tensor], one: Mapping[int, Tensor]) -> Sizes | None:
    """The sizes of one capture's arguments by the symbols of the other's; None where unclear."""
    found: dict[Any, Any] = {}
    if several.keys() != one.keys():
        return None
    for i, fake in several.items():
        for size, other in zip(fake.shape, one[i].shape, strict=True):
            known, there = expression(size), expression(other)
            if getattr(known, "is_Symbol", False):
                known = found.setdefault(known, there)
            if known != there:
                return None
    return found


def same_graph(several: fx.GraphModule, one: fx.GraphModule, sizes: Sizes) -> bool:
    """Whether the first graph at ``sizes`` is the second (conditions 1 and 2)."""
    left, right = (
        [n for n in gm.graph.nodes if not _is_number(n) and _whole(n) is n]
        for gm in (several, one)
    )
    if len(left) != len(right):
        return False
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(left, right, strict=True):
        if a.op != b.op or not _same_target(several, a, one, b):
            return False
        if not _same((a.args, a.kwargs), (b.args, b.kwargs), twin, sizes):
            return False
        if not _same_shape(a.meta.get("val"), b.meta.get("val"), sizes):
            return False
        twin[a] = b
    return all(_is_plain(n) for gm in (several, one) for n in gm.graph.nodes if _is_number(n))


def _whole(node: fx.Node) -> fx.Node:
    """The node of which a node is the slice of everything: torch leaves some of these out."""
    while node.target is torch.ops.aten.slice.Tensor and not node.kwargs:
        x, _, *bounds = node.args
        if bounds not in ([0, _END], [None, None], [0, _END, 1]) or not isinstance(x, fx.Node):
            break
        node = x
    return node


def _is_number(node: fx.Node) -> bool:
    """Whether a node is a size or computed from sizes."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _is_plain(node: fx.Node) -> bool:
    """Whether a number is a size, or computed in a way that holds for every size."""
    if node.op == "placeholder" or not node.users:
        return True
    if node.target is torch.ops.aten.sym_size.int:
        return isinstance(node.args[0], fx.Node) and "val" in node.args[0].meta
    if node.target is operator.floordiv:
        return type(node.args[1]) is int
    return node.target in (operator.add, operator.sub, operator.mul, operator.neg)


def _same_shape(x: Any, y: Any, sizes: Sizes) -> bool:
    """Whether results have equal sizes; true of what is no tensor."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return not isinstance(x, Tensor) and not isinstance(y, Tensor)
    rows = [(expression(p), expression(q)) for p, q in zip(x.shape, y.shape, strict=False)]
    return x.dim() == y.dim() and all(_equal(p, q, sizes) for p, q in rows)


def _equal(p: Any, q: Any, sizes: Sizes) -> bool:
    """Whether a size of the first graph is one of the second, for all that the sizes may be."""
    if any(isinstance(v, (bool, float, complex)) or v is None for v in (p, q)):
        return False
    if getattr(p, "free_symbols", set()) - sizes.keys():
        return False  # read from a tensor
    return bool((p.xreplace(dict(sizes)) if hasattr(p, "xreplace") else p) == q)


def _same_target(several: fx.GraphModule, a: fx.Node, one: fx.GraphModule, b: fx.Node) -> bool:
    """Whether two nodes call one operator, equal forms, or hold equal tensors."""
    if a.op in ("placeholder", "output"):
        return True  # where inputs come from, the caller compares
    if a.op == "call_function":
        return a.target is b.target
    if a.op == "call_module":
        return _same_form(several.get_submodule(str(a.target)), one.get_submodule(str(b.target)))
    x, y = _held(several, a), _held(one, b)
    return isinstance(x, Tensor) and isinstance(y, Tensor) and _same_tensor(x, y)


def _held(gm: fx.GraphModule, node: fx.Node) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(gm.get_submodule(owner), name, None)


def _same_tensor(x: Tensor, y: Tensor) -> bool:
    alike = (x.dtype, x.device, x.shape) == (y.dtype, y.device, y.shape)
    return x is y or (alike and x.stride() == y.stride() and torch.equal(x, y))


def _same_form(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules of forms have the same settings, parameters and buffers."""
    plain = [{k: repr(v) for k, v in vars(x).items() if not k.startswith("_")} for x in (a, b)]
    own = [[*x.named_parameters(), *x.named_buffers()] for x in (a, b)]
    if type(a) is not type(b) or plain[0] != plain[1] or len(own[0]) != len(own[1]):
        return False
    rows = zip(*own, strict=True)
    return all(name == other and _same_tensor(x, y) for (name, x), (other, y) in rows)


def _same(x: Any, y: Any, twin: Mapping[fx.Node, fx.Node], sizes: Sizes) -> bool:
    """Whether two nodes have equal arguments: twins, equal sizes, equal values."""
    if isinstance(x, fx.Node) and not _is_number(x):
        return isinstance(y, fx.Node) and twin.get(_whole(x)) is _whole(y)
    if _is_size(x) or _is_size(y):
        p, q = (expression(v.meta["val"]) if _is_size(v) else v for v in (x, y))
        return _equal(p, q, sizes)
    if isinstance(x, slice) and isinstance(y, slice):
        x, y = (x.start, x.stop, x.step), (y.start, y.stop, y.step)
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        x, y = list(x.items()), list(y.items())
    if isinstance(x, (tuple, list)) and isinstance(y, (tuple, list)):
        return len(x) == len(y) and all(
            _same(p, q, twin, sizes) for p, q in zip(x, y, strict=True)
        )
    return type(x) is type(y) and bool(x == y)


def _is_size(x: Any) -> bool:
    return isinstance(x, fx.Node) and _is_number(x)
