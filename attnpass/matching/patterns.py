"""The pattern of a mask that depends on no input: all, causal, window, or arbitrary.

Where all sizes are known, the mask is computed and compared with the pattern, position by
position; else the pattern is proven from the mask's formula.

Soundness: ``causal`` is claimed only where the mask keeps the positions s <= t and no other, at
every size that the guards allow; it is then dropped in favour of an exact causal form. Conditions:

1. No input and no random number reaches the mask (``constants.constant_slice``).
2. All planes ``[T, S]`` of the mask are the same: it is one mask for all batches and heads.
3. T = S where the pattern is causal or a window: with T != S, ``s <= t`` has two meanings.
4. Where a size is symbolic, no sample decides: that another position than those of the pattern is
   kept, or one of them lost, contradicts the inequalities that the mask is made of
   (``positions``, ``inequalities``).

A mask that is not proven is ``arbitrary`` and is computed at run time. Where sizes are numbers,
the guards allow these sizes alone, and the mask is computed for them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attnpass.matching.cells import Cells, Unread, position
from attnpass.matching.constants import EVALUATED, constant_slice, evaluate
from attnpass.matching.inequalities import (
    TRUE,
    Formula,
    TooLarge,
    at_least_zero,
    both,
    either,
    impossible,
    opposite,
)
from attnpass.matching.positions import Positions
from attnpass.matching.recipe import Machine, Recipe, replay
from attnpass.torch_internals import expression

Sizes = tuple[Any, Any]
"""T and S of a map, numbers or symbolic."""


def constant_pattern(recipe: Recipe, sizes: Sizes) -> str | None:
    """``all``, ``causal``, ``window`` or ``arbitrary``; None where inputs decide (condition 1)."""
    nodes = constant_slice(recipe)
    if nodes is None:
        return None
    t, s = map(expression, sizes)
    if isinstance(t, int) and isinstance(s, int) and max(t, s) <= EVALUATED:
        value = evaluate(recipe, nodes)
        if value is not None:
            return _pattern(value.bool(), t, s)
    try:
        return _proven(_read(recipe), t, s)
    except (Unread, TooLarge):
        return "arbitrary"


def _read(recipe: Recipe) -> Cells:
    """The recipe as a formula over positions."""
    machine: Machine[Any] = Positions()
    found: Cells = replay(recipe, machine)[0]
    return found


def _proven(mask: Cells, t: Any, s: Any) -> str:
    """The pattern of a mask for every value of its symbolic sizes (condition 4)."""
    sizes = (*(1, 1), *mask.shape)[-2:]
    row, column = position(2), position(1)
    inside = TRUE
    for at, size, own in ((row, t, sizes[0]), (column, s, sizes[1])):
        if own not in (1, size):
            return "arbitrary"
        inside = both(inside, both(at_least_zero(at), at_least_zero(size - 1 - at)))
    kept = mask.holds
    lost = opposite(kept)
    if impossible(both(inside, lost)):
        return "all"
    if t != s:
        return "arbitrary"  # condition 3
    below = at_least_zero(row - column)
    wrong = either(both(kept, opposite(below)), both(lost, below))
    if impossible(both(inside, wrong)):
        return "causal"
    return "window" if _is_band(inside, kept) else "arbitrary"


def _is_band(inside: Formula, kept: Formula) -> bool:
    """Whether a mask keeps the positions whose distance is between two bounds."""
    if len(kept) != 1:
        return False
    (case,) = kept
    distance = {(position(2), 1), (position(1), -1)}
    either_way = (distance, {(x, -c) for x, c in distance})
    for row in case:
        without = opposite(frozenset({frozenset({row})}))
        if impossible(both(inside, without)):
            continue  # holds at every position
        if {x for x in row[0] if x[0] in (position(1), position(2))} not in either_way:
            return False
    return True


def _pattern(value: Tensor, t: int, s: int) -> str:
    """The pattern of a computed mask that broadcasts to ``[..., T, S]``."""
    if bool(value.all()):
        return "all"
    try:
        full = value.expand(*value.shape[:-2], t, s) if value.dim() >= 2 else value.expand(t, s)
    except RuntimeError:
        return "arbitrary"
    planes = full.reshape(-1, t, s)
    plane = planes[0]
    if not bool((planes == plane).all()):
        return "arbitrary"  # condition 2
    if t == s and torch.equal(plane, torch.ones(t, s, dtype=torch.bool).tril()):
        return "causal"  # condition 3
    if not bool(plane.any()):
        return "arbitrary"
    distance = torch.arange(t).unsqueeze(1) - torch.arange(s)
    low, high = int(distance[plane].min()), int(distance[plane].max())
    band = (distance >= low) & (distance <= high)
    return "window" if t == s and torch.equal(plane, band) else "arbitrary"


def only_masks(recipe: Recipe, sizes: Sizes) -> bool:
    """Whether a float term depends on no input and only ever adds 0 or -inf."""
    nodes = constant_slice(recipe)
    if nodes is None:
        return False
    if all(isinstance(s, int) and s <= EVALUATED for s in sizes):
        value = evaluate(recipe, nodes)
        if value is not None:
            return bool(((value == 0) | (value == -torch.inf)).all())
    try:
        cells = _read(recipe)
    except (Unread, TooLarge):
        return False
    return {x for _, x in cells.cases} <= {0, -math.inf}
