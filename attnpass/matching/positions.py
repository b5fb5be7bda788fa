"""Tensors that are made of sizes alone, read as formulas over positions.

``arange(n)[:, None] >= arange(n)`` is read as ``row - column >= 0``: a statement about every size,
not about an example.

Soundness: at every position, and for every value of the symbolic sizes, a tensor has the value
that its cells say. Conditions:

1. Every operator is one of ``_READERS``, whose readers refuse arguments that they do not name.
2. A value keeps itself in the tensor's dtype: positions only in those of ``cells.EXACT``.
3. A slice starts at a number that is not negative, and its step is 1.
4. A view adds or drops axes of size 1 and does nothing else.
5. Two tensors meet in an axis where their sizes are equal or one of them is 1.
6. The shape that a reader finds is the one that the graph recorded.

Not covered: whole numbers above 2^24 in float32; a mask of so many positions fits no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import attribute, operand, operators, value
from attnpass.matching.cells import (
    Cells,
    Shape,
    Unread,
    combined,
    compared,
    filled,
    joined,
    number,
    position,
    related,
    selected,
    truth,
)
from attnpass.matching.inequalities import TRUE, at_least_zero, both, either, opposite
from attnpass.torch_internals import OpOverload, expression


class Positions:
    """The machine that recipes are replayed on, to read them as cells.

    Its methods raise ``Unread`` for what is not understood and ``TooLarge`` for too many cases.
    """

    def __init__(self) -> None:
        self._known: dict[fx.Node, Any] = {}

    def sizes(self, node: fx.Node) -> list[Any]:
        """The shape of a node of the graph."""
        return list(_shape(value(node)))

    def read(self, node: fx.Node) -> Any:
        """The cells of a node, or the number that it is."""
        if node not in self._known:
            self._known[node] = self._made(node)
        return self._known[node]

    def _made(self, node: fx.Node) -> Any:
        found = node.meta.get("val")
        if isinstance(found, (torch.SymInt, int)):
            return number(found)
        if not isinstance(found, Tensor):
            raise Unread
        if node.op == "get_attr":
            held = attribute(node)
            if held is None or held.numel() != 1:
                raise Unread
            return filled(_shape(held), held.item(), held.dtype)
        if node.op != "call_function":
            raise Unread
        name = _name(node.target)
        args: list[Any] = list(node.args)
        if name in _LIKE and isinstance(args[0], fx.Node):
            # the operand gives its shape and dtype, not its values
            args[0] = filled(_shape(value(operand(node))), 0, torch.bool)
        given: Any = (args, dict(node.kwargs))
        read: Any = self.read
        mapped: Any = fx.map_arg(given, read)
        out = _result(name, mapped[0], mapped[1], found)
        if out.shape != _shape(found):
            raise Unread  # condition 6
        return out.cast(found.dtype)

    def call(self, operator: Any, *args: Any, **kwargs: Any) -> Cells:
        """What an operator makes of cells."""
        return _result(_name(operator), list(args), kwargs, None)


def _name(target: Any) -> str:
    return (
        str(target.name().split("::")[1].split(".")[0]) if isinstance(target, OpOverload) else ""
    )


def _result(name: str, args: list[Any], kwargs: dict[str, Any], made: Tensor | None) -> Cells:
    """What an operator makes (condition 1); ``made`` is the graph's record of it."""
    reader = _READERS.get(name)
    if reader is None:
        raise Unread
    kwargs = {k: x for k, x in kwargs.items() if k not in _PLACE}
    try:
        return reader(made, *args, **kwargs)
    except (TypeError, IndexError) as error:
        raise Unread from error


_PLACE = frozenset(
    {"device", "dtype", "layout", "pin_memory", "memory_format", "copy", "non_blocking"}
)
"""Arguments that say where and in which dtype; the dtype is taken from the record."""

_LIKE = frozenset({"ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"})


def _shape(x: Tensor) -> Shape:
    return tuple(expression(s) for s in x.shape)


def _recorded(made: Tensor | None) -> Tensor:
    if made is None:
        raise Unread
    return made


def _dtype(made: Tensor | None, x: Cells) -> torch.dtype:
    return x.dtype if made is None else made.dtype


def _cells(x: Any) -> Cells:
    """A tensor, or a number as a tensor of no axes."""
    return x if isinstance(x, Cells) else Cells((), ((TRUE, number(x)),), torch.float64)


def _range(made: Tensor | None, *args: Any) -> Cells:
    start, _, step = {1: (0, *args, 1), 2: (*args, 1), 3: args}[len(args)]
    e = number(start) + number(step) * position(1)
    # what is no whole number steps by rounding
    if any(isinstance(number(x), float) for x in args):
        raise Unread
    return Cells(_shape(_recorded(made)), ((TRUE, e),), torch.int64)


def _fill(x: float) -> Callable[..., Cells]:
    return lambda made, *sizes: filled(_shape(_recorded(made)), x, _recorded(made).dtype)


def _full(made: Tensor | None, *args: Any) -> Cells:
    return filled(_shape(_recorded(made)), args[-1], _recorded(made).dtype)


def _sum(sign: int) -> Callable[..., Cells]:
    def read(made: Tensor | None, a: Any, b: Any, alpha: Any = 1) -> Cells:
        a, b, factor = _cells(a), _cells(b), sign * number(alpha)
        if torch.bool in (a.dtype, b.dtype) and _dtype(made, a) == torch.bool:
            raise Unread
        return combined(lambda x, y: _plus(x, _times(factor, y)), a, b, _dtype(made, a))

    return read


def _plus(x: Any, y: Any) -> Any:
    return _checked(x + y, x, y)


def _times(x: Any, y: Any) -> Any:
    return _checked(x * y, x, y)


def _checked(out: Any, *parts: Any) -> Any:
    """A sum or product; refused where a float meets an expression, or rounds."""
    if any(isinstance(x, float) for x in parts):
        finite = [x for x in parts if not (isinstance(x, float) and abs(x) == float("inf"))]
        if any(isinstance(x, float) for x in finite) or not all(
            isinstance(x, (int, float)) for x in parts
        ):
            raise Unread
    return number(out)


def _product(made: Tensor | None, a: Any, b: Any) -> Cells:
    a, b = _cells(a), _cells(b)
    return combined(_times, a, b, _dtype(made, a))


def _compare(name: str) -> Callable[..., Cells]:
    return lambda made, a, b: related(name, _cells(a), _cells(b))


def _logic(fold: Callable[[Any, Any], Any], bitwise: bool) -> Callable[..., Cells]:
    def read(made: Tensor | None, a: Any, b: Any) -> Cells:
        a, b = _cells(a), _cells(b)
        if bitwise and {a.dtype, b.dtype} != {torch.bool}:
            raise Unread
        return truth(joined(a.shape, b.shape), fold(a.holds, b.holds))

    return read


def _negated(bitwise: bool) -> Callable[..., Cells]:
    def read(made: Tensor | None, a: Cells) -> Cells:
        if bitwise and a.dtype != torch.bool:
            raise Unread
        return truth(a.shape, opposite(a.holds))

    return read


def _where(made: Tensor | None, condition: Any, a: Any, b: Any) -> Cells:
    return selected(_cells(condition), _cells(a), _cells(b), _recorded(made).dtype)


def _masked_fill(made: Tensor | None, a: Cells, mask: Cells, fill: Any) -> Cells:
    return selected(mask, _cells(fill), a, _dtype(made, a))


def _triangle(sign: int) -> Callable[..., Cells]:
    """``tril`` (1) or ``triu`` (-1): 0 on the other side of a diagonal."""

    def read(made: Tensor | None, a: Cells, diagonal: Any = 0) -> Cells:
        row, column = (0 if a.shape[-axis] == 1 else position(axis) for axis in (2, 1))
        inside = at_least_zero(sign * (row - column + number(diagonal)))
        return selected(truth(a.shape, inside), a, _cells(0), a.dtype)

    return read


def _absolute(made: Tensor | None, a: Cells) -> Cells:
    cases = []
    for where, x in a.cases:
        below = compared("lt", x, 0)
        cases += [(both(where, below), -x), (both(where, opposite(below)), x)]
    return Cells(a.shape, tuple(row for row in cases if row[0]), a.dtype)


def _cast(made: Tensor | None, a: Cells, *args: Any) -> Cells:
    dtypes = [x for x in args if isinstance(x, torch.dtype)]
    return a.cast(made.dtype if made is not None else dtypes[0] if dtypes else a.dtype)


def _permuted(a: Cells, order: list[int]) -> Cells:
    """Axes in another order; ``order``: for every new axis the old one, counted from the front."""
    rank = len(a.shape)
    to = {rank - old: position(rank - new) for new, old in enumerate(order)}
    return a.moved(tuple(a.shape[i] for i in order), to)


def _transpose(made: Tensor | None, a: Cells, i: int = -2, j: int = -1) -> Cells:
    order = list(range(len(a.shape)))
    order[i], order[j] = order[j], order[i]
    return _permuted(a, order)


def _permute(made: Tensor | None, a: Cells, order: list[int]) -> Cells:
    return _permuted(a, [i % len(a.shape) for i in order])


def _viewed(a: Cells, shape: Shape) -> Cells:
    """Axes of size 1 added or dropped (condition 4)."""
    old = [(len(a.shape) - i, s) for i, s in enumerate(a.shape) if s != 1]
    new = [(len(shape) - i, s) for i, s in enumerate(shape) if s != 1]
    if [s for _, s in old] != [s for _, s in new]:
        raise Unread
    return a.moved(shape, {i: position(j) for (i, _), (j, _) in zip(old, new, strict=True)})


def _view(made: Tensor | None, a: Cells, *rest: Any) -> Cells:
    return _viewed(a, _shape(_recorded(made)))


def _unsqueeze(made: Tensor | None, a: Cells, dim: int) -> Cells:
    at = dim % (len(a.shape) + 1)
    return _viewed(a, (*a.shape[:at], 1, *a.shape[at:]))


def _expand(made: Tensor | None, a: Cells, sizes: Any, implicit: bool = False) -> Cells:
    sizes = sizes.shape if isinstance(sizes, Cells) else tuple(sizes)
    old = (*(1,) * (len(sizes) - len(a.shape)), *a.shape)
    shape = tuple(
        o if isinstance(n, int) and n == -1 else expression(n)
        for o, n in zip(old, sizes, strict=True)
    )
    if any(o not in (1, n) for o, n in zip(old, shape, strict=True)):
        raise Unread
    return Cells(shape, a.cases, a.dtype)


def _slice(
    made: Tensor | None, a: Cells, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Cells:
    at, start = dim % len(a.shape), number(start or 0)
    whole = start == 0 and isinstance(end, (int, type(None))) and (end is None or end >= 2**62)
    if whole and step == 1:
        return a
    if step != 1 or not isinstance(start, int) or start < 0:
        raise Unread  # condition 3
    shape = list(a.shape)
    shape[at] = _shape(_recorded(made))[at]
    axis = len(a.shape) - at
    if shape[at] == 1:
        return a.moved(tuple(shape), {axis: start})
    return a.moved(tuple(shape), {axis: position(axis) + start})


def _select(made: Tensor | None, a: Cells, dim: int, index: Any) -> Cells:
    at, index = dim % len(a.shape), number(index)
    if not isinstance(index, int) or index < 0:
        raise Unread
    rank = len(a.shape)
    to = {rank - i: position(rank - i - (i < at)) for i in range(rank) if i != at}
    return a.moved((*a.shape[:at], *a.shape[at + 1 :]), to | {rank - at: index})


_READERS: dict[str, Callable[..., Cells]] = {
    "arange": _range,
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _fill(1)),
    **dict.fromkeys(operators.ZEROS, _fill(0)),
    **dict.fromkeys(("full", "full_like", "new_full", "scalar_tensor"), _full),
    "add": _sum(1),
    "sub": _sum(-1),
    "rsub": lambda made, a, b, alpha=1: _sum(-1)(made, b, a, alpha),
    "mul": _product,
    "neg": lambda made, a: _product(made, a, -1),
    "abs": _absolute,
    **{name: _compare(name) for name in ("ge", "gt", "le", "lt", "eq", "ne")},
    "logical_and": _logic(both, bitwise=False),
    "logical_or": _logic(either, bitwise=False),
    **dict.fromkeys(("bitwise_and", "__and__"), _logic(both, bitwise=True)),
    **dict.fromkeys(("bitwise_or", "__or__"), _logic(either, bitwise=True)),
    "logical_not": _negated(bitwise=False),
    "bitwise_not": _negated(bitwise=True),
    "where": _where,
    "masked_fill": _masked_fill,
    "tril": _triangle(1),
    "triu": _triangle(-1),
    **dict.fromkeys(operators.CASTS - {"type_as"}, _cast),
    **dict.fromkeys(operators.COPIES | {"detach"}, lambda made, a, *rest: a),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "squeeze", "flatten"), _view),
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("transpose", "t", "mT", "swapaxes"), _transpose),
    "permute": _permute,
    "slice": _slice,
    "select": _select,
}
"""How an operator's result is read off its arguments, by the operator's name."""
