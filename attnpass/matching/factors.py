"""Factors: the indivisible parts of an axis, by which two axes are told to be the same."""

from __future__ import annotations

import math
from collections.abc import Hashable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
from torch import Tensor, fx

from attnpass.graph import operand
from attnpass.torch_internals import expression

MARKS = ("columns", "a", "b", "both", "merged")
"""Kinds that follow an axis of one node through its users (``normaliser``).

``merged``: a followed axis was merged with another one and cut; its parts hold both.
"""

PRIORITY = (*MARKS, "token", "feature", "input", "repeat", "unknown", "param")
"""Kinds, surest first: where two operands meet in one axis, the surer one names it."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One indivisible part of an axis. Equal factors index the same things.

    Attributes:
        id: what makes two factors the same.
        size: a number or a symbolic expression.
        kind: ``token`` (positions, also batches of positions), ``feature`` (made by a projection),
            ``input`` (an axis of a graph input: unproven), ``param``, ``repeat`` or ``unknown``.
        parts: for a concatenation, the joined axes.
    """

    id: Hashable
    size: Any
    kind: str
    parts: tuple[Axis, ...] = ()
    _hash: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factor) and self.id == other.id

    def __hash__(self) -> int:
        return self._hash

    def __post_init__(self) -> None:
        # ids nest, one level per view: hash each once
        object.__setattr__(self, "_hash", hash(self.id))


Axis = tuple[Factor, ...]

Axes = tuple[Axis, ...]


def kinds(axis: Axis) -> set[str]:
    """The kinds of an axis' factors; empty for an axis of size 1."""
    return {f.kind for f in axis}


def _ratio(a: Any, b: Any) -> Any:
    """``a / b`` where that is provably an integer, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if quotient.is_integer is not True or sympy.fraction(quotient)[1] != 1:
        return None
    return int(quotient) if quotient.is_number else quotient


def regroup(axes: Sequence[Axis], sizes: Sequence[Any]) -> Axes | None:
    """The axes of a view to ``sizes``; None where factors cannot be split to fit."""
    rest = [f for axis in axes for f in axis]
    out: list[Axis] = []
    for need in sizes:
        axis: list[Factor] = []
        while need != 1:
            if not rest:
                return None
            f = rest.pop(0)
            left = _ratio(need, f.size)
            if left is not None:
                axis.append(f)
                need = left
                continue
            inner = _ratio(f.size, need)
            if inner is None:
                return None
            axis.append(Factor((f.id, "outer", need), need, f.kind))
            rest.insert(0, Factor((f.id, "inner", need), inner, f.kind))
            need = 1
        out.append(tuple(axis))
    return None if rest else tuple(out)


def size_of(axis: Axis) -> Any:
    """The size of an axis: the product of its factors', a number or an expression."""
    sizes = [f.size for f in axis]
    return math.prod(sizes) if all(isinstance(s, int) for s in sizes) else sympy.prod(sizes)


def rank_of(axis: Axis) -> int:
    """How sure an axis is of its kind; smaller is surer."""
    return min((PRIORITY.index(k) for k in kinds(axis)), default=len(PRIORITY))


def surer(a: Axis, b: Axis) -> Axis:
    """The one of two names of an axis that is of the surer kind."""
    return b if b and (not a or rank_of(b) < rank_of(a)) else a


def kind_of(axis: Axis) -> str:
    """The surest kind of an axis that is cut or rearranged as a whole."""
    kind = min(kinds(axis) or {"unknown"}, key=PRIORITY.index)
    return "merged" if kind in MARKS and len(axis) > 1 else kind


def other_positions(old: Axis, new: Axis) -> Axis:
    """Positions of the same kind as ``old``, but not the same ones."""
    if not old or not new:
        return new
    return (Factor(new[0].id, new[0].size, kind_of(old)),)


def fits(axis: Axis, size: Any) -> bool:
    """Whether an axis provably has a size."""
    return bool(size_of(axis) == expression(size))


@dataclass
class Provenance:
    """The axes of a graph's tensors known so far; ``many``: of operators with several results."""

    axes: MutableMapping[fx.Node, Axes] = field(default_factory=dict)
    many: dict[fx.Node, list[Axes]] = field(default_factory=dict)

    def source(self, node: fx.Node, i: int = 0) -> Axes:
        """The axes of a node's operand."""
        return self.axes[operand(node, i)]

    def fresh(self, node: fx.Node, value: Tensor, kind: str) -> Axes:
        """Axes of their own, as they come from nowhere else; those of size 1 have no factor."""
        sizes = [expression(s) for s in value.shape]
        return tuple(
            () if s == 1 else (Factor((node.name, i), s, kind),) for i, s in enumerate(sizes)
        )
