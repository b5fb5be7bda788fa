"""Masks and biases of a site made again, lifted so that they broadcast to ``[B, H, T, S]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from attnpass.graph import value
from attnpass.matching import FirstOf, Placed, Recipe, recipe_shape, replay
from attnpass.rewrite.layouts import canonical
from attnpass.rewrite.writer import Writer

aten = torch.ops.aten


def combined(w: Writer, placed: list[Placed], operator: Any) -> fx.Node | None:
    """All masks of a kind, combined by an operator; None where there is none."""
    out: fx.Node | None = None
    for item in placed:
        x = mask_node(w, item)
        out = x if out is None else w.call(operator, out, x)
    return out


def mask_node(w: Writer, placed: Placed) -> fx.Node:
    """A recipe replayed and lifted to four axes."""
    x, rank = replay(placed.recipe, w)
    lead = placed.lead
    four = any(isinstance(step, FirstOf) for step in placed.recipe.steps)
    if four or rank <= 2 or (lead.count == 2 and lead.paired and lead.split < 0):
        return _lifted(w, x, rank, 4)
    x = _lifted(w, x, rank, lead.count + 2)
    if rank < lead.count + 2 or _broadcasts(placed.recipe, lead.count):
        if lead.count == 1:
            return w.call(aten.unsqueeze.default, x, 0)
    elif lead.count > 1:
        x = _expanded(w, x, placed)
    return canonical(w, x, lead)


def _lifted(w: Writer, x: fx.Node, rank: int, to: int) -> fx.Node:
    """A node of ``rank`` axes with axes of size 1 in front, up to ``to`` axes."""
    for _ in range(to - rank):
        x = w.call(aten.unsqueeze.default, x, 0)
    return x


def _broadcasts(recipe: Recipe, count: int) -> bool:
    """Whether the leading axes of a recipe are all of size 1."""
    shape = recipe_shape(recipe)
    return shape is not None and all(isinstance(s, int) and s == 1 for s in shape[:count])


def _expanded(w: Writer, x: fx.Node, placed: Placed) -> fx.Node:
    """Leading axes expanded so that they can be merged; the head axis stays as it is."""
    lead = placed.lead
    batch = lead.count - 1 if lead.paired and lead.split < 0 else lead.count
    at, shape = w.read(placed.at), value(placed.at).shape
    wanted = [
        s if isinstance(s, int) else w.call(aten.sym_size.int, at, i)
        for i, s in enumerate(shape[:batch])
    ]
    return w.call(aten.expand.default, x, [*wanted, *([-1] * (lead.count + 2 - batch))])
