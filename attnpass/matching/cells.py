"""Values of a tensor as a function of the positions along its axes.

Axes are counted from the end, as broadcasting does: axis 1 is the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sympy
import torch

from attnpass.matching.inequalities import (
    FALSE,
    TRUE,
    Formula,
    at_least_zero,
    both,
    either,
    opposite,
)
from attnpass.torch_internals import expression


class Unread(Exception):
    """A tensor that is not described by its positions."""


EXACT = frozenset({torch.bool, torch.int64, torch.int32, torch.float32, torch.float64})
"""Dtypes in which a position keeps its value."""

Shape = tuple[Any, ...]
"""Sizes, numbers or expressions."""


@cache
def position(axis: int) -> Any:
    """The unknown for the position along an axis, counted from the end."""
    return sympy.Symbol(f"position_{axis}", integer=True)


@dataclass(frozen=True)
class Cells:
    """A tensor by position.

    Attributes:
        shape: sizes, numbers or expressions.
        cases: conditions of which exactly one holds, each with a value: a whole number, an
            expression of positions and sizes, or a float that is no whole number.
        dtype: of the tensor.
    """

    shape: Shape
    cases: tuple[tuple[Formula, Any], ...]
    dtype: torch.dtype

    @property
    def holds(self) -> Formula:
        """Where the tensor, cast to bool, is True."""
        out = FALSE
        for where, x in self.cases:
            out = either(out, both(where, compared("ne", x, 0)))
        return out

    def moved(self, shape: Shape, to: dict[int, Any]) -> Cells:
        """The values read elsewhere: ``to`` maps an axis of this tensor to a position in it."""
        swap = {position(axis): x for axis, x in to.items()}
        cases = tuple((_moved(where, swap), _placed(x, swap)) for where, x in self.cases)
        return replace(self, shape=shape, cases=cases)

    def cast(self, dtype: torch.dtype) -> Cells:
        """The values in another dtype.

        Raises:
            Unread: a value is not the same there.
        """
        if dtype == torch.bool:
            return self if self.dtype == torch.bool else truth(self.shape, self.holds)
        cases = tuple((where, _in(x, dtype)) for where, x in self.cases)
        return Cells(self.shape, cases, dtype)


def _moved(where: Formula, swap: dict[Any, Any]) -> Formula:
    out = FALSE
    for case in where:
        rows = TRUE
        for terms, k in case:
            e = sum((c * x for x, c in terms), sympy.Integer(k))
            rows = both(rows, at_least_zero(_placed(e, swap)))
        out = either(out, rows)
    return out


def _placed(x: Any, swap: dict[Any, Any]) -> Any:
    return x.subs(swap, simultaneous=True) if isinstance(x, sympy.Basic) else x


def _in(x: Any, dtype: torch.dtype) -> Any:
    """A value as a dtype holds it."""
    if isinstance(x, sympy.Basic) and not x.is_number:
        if dtype not in EXACT:
            raise Unread
        return x
    if isinstance(x, float) and not dtype.is_floating_point:
        raise Unread
    try:
        return number(torch.tensor(x if isinstance(x, float) else int(x), dtype=dtype).item())
    except (RuntimeError, OverflowError) as error:
        raise Unread from error


def number(x: Any) -> Any:
    """A number or a symbolic size as a value of cells.

    Raises:
        Unread: it is neither, or not a number (NaN).
    """
    x = expression(x)
    if isinstance(x, sympy.Basic) and not x.is_Integer:
        if x.is_integer:
            return x
        raise Unread
    if isinstance(x, (int, sympy.Integer)) or (isinstance(x, float) and x.is_integer()):
        return int(x)
    if isinstance(x, float) and not math.isnan(x):
        return x
    raise Unread


def filled(shape: Shape, x: Any, dtype: torch.dtype) -> Cells:
    """A tensor of one value."""
    return Cells(shape, ((TRUE, number(x)),), torch.float64).cast(dtype)


def truth(shape: Shape, where: Formula) -> Cells:
    """A bool tensor that is True where a formula holds."""
    return Cells(shape, ((where, 1), (opposite(where), 0)), torch.bool)


def selected(where: Cells, a: Cells, b: Cells, dtype: torch.dtype) -> Cells:
    """``a`` where a condition holds, else ``b``."""
    at = where.holds
    cases = [(both(at, w), x) for w, x in a.cases]
    cases += [(both(opposite(at), w), x) for w, x in b.cases]
    shape = joined(where.shape, a.shape, b.shape)
    return Cells(shape, tuple(row for row in cases if row[0]), dtype).cast(dtype)


def joined(*shapes: Shape) -> Shape:
    """The shape of tensors that meet: sizes are equal, or 1.

    Raises:
        Unread: sizes that are not proven to be equal.
    """
    out = []
    for axis in range(max(map(len, shapes)), 0, -1):
        sizes = {s[-axis] for s in shapes if len(s) >= axis and s[-axis] != 1}
        if len(sizes) > 1:
            raise Unread
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def combined(fold: Callable[[Any, Any], Any], a: Cells, b: Cells, dtype: torch.dtype) -> Cells:
    """A function of two tensors, position by position."""
    pairs = [(both(v, w), x, y) for v, x in a.cases for w, y in b.cases]
    cases = tuple((w, fold(x, y)) for w, x, y in pairs if w)
    return Cells(joined(a.shape, b.shape), cases, dtype).cast(dtype)


def related(name: str, a: Cells, b: Cells) -> Cells:
    """Where a comparison of two tensors holds; ``name`` is ``ge``, ``gt``, ``eq`` and so on."""
    out = FALSE
    for v, x in a.cases:
        for w, y in b.cases:
            out = either(out, both(both(v, w), compared(name, x, y)))
    return truth(joined(a.shape, b.shape), out)


def compared(name: str, x: Any, y: Any) -> Formula:
    """Where a comparison of two values holds."""
    match name:
        case "le":
            return compared("ge", y, x)
        case "lt":
            return compared("gt", y, x)
        case "ne":
            return opposite(compared("eq", x, y))
        case "eq":
            return both(compared("ge", x, y), compared("ge", y, x))
    strict = name == "gt"
    if _known(x) and _known(y):
        return TRUE if (x > y if strict else x >= y) else FALSE
    if isinstance(x, float) or isinstance(y, float):
        return _beside_a_float(x, y, strict)
    return at_least_zero(x - y - int(strict))


def _known(x: Any) -> bool:
    return not isinstance(x, sympy.Basic) or bool(x.is_number)


def _beside_a_float(x: Any, y: Any, strict: bool) -> Formula:
    """A whole number against a float that is none."""
    if isinstance(y, float):
        if math.isinf(y):
            return TRUE if y < 0 else FALSE
        return at_least_zero(x - math.ceil(y))
    if math.isinf(x):
        return TRUE if x > 0 else FALSE
    return at_least_zero(math.floor(x) - y)
