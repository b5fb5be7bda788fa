"""Recipes: tensors of a graph to be rebuilt elsewhere; the values of those without inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import op_name

FILL = -1e4
"""A logit at or below this, added or set, is a mask: exp(-1e4) is 0 in every dtype."""

FIRST_HEAD = "first head"
"""A recipe step: keep one of the heads over which a mask was expanded."""

ABOVE = "above the fill"
"""A recipe step: a float mask as kept positions."""

SHAPE_OPS = frozenset(
    {
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "permute",
        "transpose",
        "flatten",
        "unflatten",
        "slice",
        "select",
        "_unsafe_view",
        "contiguous",
        "clone",
        "alias",
        "detach",
    }
)

REGROUP = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})

CASTS = frozenset({"to", "_to_copy", "type_as", "float", "lift_fresh_copy"})


@dataclass(frozen=True)
class Like:
    """A recipe step: expand to the shape of a node."""

    node: fx.Node


@dataclass(frozen=True)
class FirstOf:
    """A recipe step: a leading axis of batch and ``heads`` repeats, split and cut to one head."""

    heads: int


Step = fx.Node | int | float | str | torch.dtype | Like | FirstOf


@dataclass(frozen=True)
class Recipe:
    """A tensor to be rebuilt in the graph: ``base``, negated or not, then ``steps`` replayed.

    A step is a node (its operator is applied again), an int (unsqueezed in front to that rank), a
    float (multiplied), a dtype (cast, but a bool stays one), ``FIRST_HEAD`` (a mask repeated for
    every head, cut to one), ``ABOVE``, ``Like`` (expanded to the shape of a node) or ``FirstOf``
    (then already ``[B, 1, 1, S]``).
    """

    base: fx.Node
    negate: bool = False
    steps: tuple[Step, ...] = ()

    def on(self, base: Any, flip: bool = False, rank: int | None = None) -> Recipe:
        """The same steps on another base, after lifting it to ``rank`` dimensions."""
        lift: tuple[Step, ...] = ()
        if rank is not None and rank != base.meta["val"].dim():
            lift = (rank,)
        return Recipe(base, self.negate ^ flip, lift + self.steps)

    def part(self, base: Any, whole: fx.Node, flip: bool = False) -> Recipe:
        """The same steps on an operand of ``whole``, which may be smaller than it by broadcast.

        A later view needs the full shape.
        """
        out = self.on(base, flip, whole.meta["val"].dim())
        views = {op_name(s) for s in self.steps if isinstance(s, fx.Node)} & REGROUP
        if not views or self._keeps_rows(base.meta["val"], whole.meta["val"]):
            return out
        lift = out.steps[: len(out.steps) - len(self.steps)]
        return Recipe(base, out.negate, (*lift, Like(whole), *self.steps))

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
            s.meta["val"].shape[-2:] == whole.shape[-2:] and s.args[1][-2] == -1  # type: ignore[index]
            for s in self.steps
            if isinstance(s, fx.Node) and op_name(s) in REGROUP
        )


def recipe_shape(recipe: Recipe) -> Any:
    """The shape that the recipe gives, None where it cannot be replayed on fake tensors."""
    value = recipe.base.meta["val"]
    try:
        with value.fake_mode:
            for step in recipe.steps:
                value = _replay(step, value, lambda n: n.meta["val"])
    except RuntimeError:
        # a view that does not fit the factor alone
        return None
    return value.shape


def _replay(step: Step, value: Tensor, look: Any) -> Tensor:
    if step == FIRST_HEAD:
        return value[:, :1]
    if step == ABOVE:
        return value > FILL
    if isinstance(step, torch.dtype):
        return value if value.dtype == torch.bool else value.to(step)
    if isinstance(step, FirstOf):
        split: Tensor = value.unflatten(0, (-1, step.heads))
        return split[:, :1]
    if isinstance(step, Like):
        return value.expand(step.node.meta["val"].shape)
    if isinstance(step, float):
        return value * step
    if isinstance(step, int):
        return value[(None,) * (step - value.dim())]
    assert isinstance(step, fx.Node)
    rest = fx.map_arg(step.args[1:], look)
    return replayed(step)(value, *rest, **step.kwargs)  # type: ignore[no-any-return]


def replayed(step: fx.Node) -> Any:
    """The operator that does again what ``step`` did; a view of what may not be contiguous now."""
    return torch.ops.aten.reshape.default if op_name(step) == "view" else step.target
