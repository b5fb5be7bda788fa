"""Recipes: how to compute a mask or bias of the original graph a second time, elsewhere.

A recipe is a base node and the steps that follow it. The steps are a small language; ``apply`` is
its one interpreter. It runs on real tensors (constant masks are evaluated), on fake tensors (the
shape of a recipe) and on the nodes of a graph that is being written (``rewrite``).

Soundness: a recipe gives the values that its mask or bias had in the original graph. Each step
repeats the operator of the original graph, or an equivalent one on the operand that is followed:

1. A recipe that is continued on an operand of a broadcasting operator first lifts the operand to
   the operator's rank, so that later axes mean the same (``Recipe.on``).
2. Where a later view regroups axes and the operand is smaller than the operator's result, the
   operand is expanded first, unless the view provably leaves its rows alone (``Recipe.part``).
3. A cast does not apply to a bool: kept positions stay bool whatever the mask was cast to.

Not covered: operators that read more than one tensor which depends on the base; such a term ends
the recipe and is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx

from attnpass.graph import op_name, operators, value
from attnpass.torch_internals import fake_mode_of

aten = torch.ops.aten

FILL = -1e4
"""A logit at or below this, added or set, is a mask: exp(-1e4) is 0 in every dtype."""


@dataclass(frozen=True)
class Again:
    """The operator of ``node`` is applied once more; its first operand is what came before."""

    node: fx.Node


@dataclass(frozen=True)
class Lift:
    """Axes of size 1 are put in front, up to ``rank`` axes."""

    rank: int


@dataclass(frozen=True)
class Scale:
    """Multiplied by a number."""

    factor: float


@dataclass(frozen=True)
class Cast:
    """Cast to a dtype; a bool stays one."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Like:
    """Expanded to the shape of a node."""

    node: fx.Node


@dataclass(frozen=True)
class AboveFill:
    """A float mask becomes kept positions: those above ``FILL``."""


@dataclass(frozen=True)
class FirstHead:
    """A mask ``[B, H, ...]`` that was repeated for every head is cut to one head."""


@dataclass(frozen=True)
class FirstOf:
    """A leading axis of batch and repeated ``heads`` is split and cut to one head."""

    heads: int


Step = Again | Lift | Scale | Cast | Like | AboveFill | FirstHead | FirstOf


@dataclass(frozen=True)
class Recipe:
    """A tensor to be made again: ``base``, negated as a bool or not, then ``steps`` in order."""

    base: fx.Node
    negate: bool = False
    steps: tuple[Step, ...] = ()

    def on(self, base: fx.Node, flip: bool = False, rank: int | None = None) -> Recipe:
        """The same steps on another base, after lifting it to ``rank`` axes (condition 1)."""
        lift: tuple[Step, ...] = ()
        if rank is not None and rank != value(base).dim():
            lift = (Lift(rank),)
        return Recipe(base, self.negate ^ flip, lift + self.steps)

    def part(self, base: fx.Node, whole: fx.Node, flip: bool = False) -> Recipe:
        """The same steps on an operand of ``whole``, which broadcasting may have made smaller."""
        out = self.on(base, flip, value(whole).dim())
        if not self.regroups or self._keeps_rows(value(base), value(whole)):
            return out
        lift = out.steps[: len(out.steps) - len(self.steps)]
        return Recipe(base, out.negate, (*lift, Like(whole), *self.steps))  # condition 2

    @property
    def regroups(self) -> list[fx.Node]:
        """The views among the steps that split or merge axes."""
        nodes = [s.node for s in self.steps if isinstance(s, Again)]
        return [node for node in nodes if op_name(node) in operators.REGROUPS]

    def _keeps_rows(self, part: Tensor, whole: Tensor) -> bool:
        """Whether the steps' views mean the same on ``part``, one row that stands for all.

        They do where only the leading axes are regrouped (equal trailing sizes prove it) and the
        number of rows is left open.
        """
        if part.shape == whole.shape:
            return True
        one_row = part.dim() == whole.dim() and part.shape[-2] == 1
        if not one_row or part.shape[-1] != whole.shape[-1] or part.shape[:-2] != whole.shape[:-2]:
            return False
        return all(
            value(view).shape[-2:] == whole.shape[-2:] and _leaves_rows_open(view)
            for view in self.regroups
        )


def _leaves_rows_open(view: fx.Node) -> bool:
    """Whether a view is given -1 for the number of rows."""
    sizes = view.args[1]
    return isinstance(sizes, (list, tuple)) and bool(sizes[-2] == -1)


T = TypeVar("T")
R = TypeVar("R", covariant=True)


class Machine(Protocol[R]):
    """What steps are applied to: tensors, or nodes of a graph that is being written."""

    def call(self, operator: Any, *args: Any, **kwargs: Any) -> R:
        """The result of an ATen operator."""

    def read(self, node: fx.Node) -> R:
        """The value of a node of the original graph."""

    def sizes(self, node: fx.Node) -> list[Any]:
        """The shape of a node of the original graph."""


@dataclass(frozen=True)
class Tensors:
    """Steps on tensors, real or fake; ``read`` looks up the value of a node."""

    read: Callable[[fx.Node], Any]

    def call(self, operator: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The operator's result."""
        out: Tensor = operator(*args, **kwargs)
        return out

    def sizes(self, node: fx.Node) -> list[Any]:
        """The shape that the node has in its graph."""
        return list(value(node).shape)


def replay(recipe: Recipe, machine: Machine[T]) -> tuple[T, int]:
    """What a recipe gives on ``machine``, and its rank."""
    x, rank = machine.read(recipe.base), value(recipe.base).dim()
    is_bool = value(recipe.base).dtype == torch.bool
    if recipe.negate:
        x, is_bool = machine.call(aten.logical_not.default, x), True
    for step in recipe.steps:
        if not (isinstance(step, Cast) and is_bool):  # condition 3
            x, rank = apply(step, x, rank, machine)
        is_bool = is_bool or isinstance(step, AboveFill)
    return x, rank


def apply(step: Step, x: T, rank: int, machine: Machine[T]) -> tuple[T, int]:
    """One step on a value of ``rank`` axes; the result and its rank."""
    call = machine.call
    match step:
        case Again(node):
            given: Any = (node.args[1:], dict(node.kwargs))
            read: Any = machine.read
            rest, kwargs = fx.map_arg(given, read)
            return call(_repeatable(node), x, *rest, **kwargs), value(node).dim()
        case Lift(to):
            for _ in range(to - rank):
                x = call(aten.unsqueeze.default, x, 0)
            return x, to
        case Scale(factor):
            return call(aten.mul.Tensor, x, factor), rank
        case Cast(dtype):
            return call(aten.to.dtype, x, dtype), rank
        case Like(node):
            return call(aten.expand.default, x, machine.sizes(node)), value(node).dim()
        case AboveFill():
            return call(aten.gt.Scalar, x, FILL), rank
        case FirstHead():
            return call(aten.slice.Tensor, x, 1, 0, 1), rank
        case FirstOf(heads):
            x = call(aten.unflatten.int, x, 0, [-1, heads])
            return call(aten.slice.Tensor, x, 1, 0, 1), rank + 1


def _repeatable(node: fx.Node) -> Any:
    """The operator that does again what ``node`` did; its operand may not be contiguous now."""
    return aten.reshape.default if op_name(node) == "view" else node.target


def recipe_shape(recipe: Recipe) -> torch.Size | None:
    """The shape that the recipe gives, None where it cannot be replayed on fake tensors."""
    try:
        with fake_mode_of(value(recipe.base)):
            out: Tensor = replay(recipe, Tensors(value))[0]
    except RuntimeError:
        # a view that does not fit the factor alone
        return None
    return out.shape
