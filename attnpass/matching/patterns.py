"""The pattern of a mask that depends on no input: all, causal, window, or arbitrary.

The mask is computed for real and compared with the pattern, position by position.

Soundness: ``causal`` is claimed only where every position of the computed mask says so, and the
mask is then dropped in favour of an exact causal form. Conditions:

1. No input and no random number reaches the mask (``constants.constant_slice``).
2. All planes ``[T, S]`` of the mask are the same: it is one mask for all batches and heads.
3. T = S where the pattern is causal or a window: with T != S, ``s <= t`` has two meanings.
4. Where a size is symbolic, the mask has the pattern at two sets of sizes, and no node that
   computes the mask uses a number above 1, which could change the pattern at a third set of sizes
   (``constants.large_constant``).

Not covered: condition 4 is a trial at two sizes and not a proof. A pattern that changes at a size
which is itself computed (``min(n, 128)`` spelled without a number, a tensor that holds a window)
would pass it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnpass.matching.constants import EVALUATED, constant_slice, evaluate, large_constant
from attnpass.matching.recipe import Recipe
from attnpass.torch_internals import expression

Sizes = tuple[Any, Any]
"""T and S of a map, numbers or symbolic."""


def constant_pattern(recipe: Recipe, sizes: Sizes) -> str | None:
    """``all``, ``causal``, ``window`` or ``arbitrary``; None where inputs decide (condition 1)."""
    nodes = constant_slice(recipe)
    if nodes is None:
        return None
    symbols = sorted(
        {s for x in sizes for s in getattr(expression(x), "free_symbols", ())}, key=str
    )
    if symbols and large_constant(nodes):
        return "arbitrary"  # condition 4
    found = set()
    for trial in range(2 if symbols else 1):
        at = {s: 7 + 6 * i + 12 * trial for i, s in enumerate(symbols)}
        t, s = (_at(x, at) for x in sizes)
        if t is None or s is None or max(t, s) > EVALUATED:
            return "arbitrary"
        value = evaluate(recipe, nodes, at)
        if value is None:
            return "arbitrary"
        found.add(_pattern(value.bool(), t, s))
    return found.pop() if len(found) == 1 else "arbitrary"


def _at(size: Any, at: dict[Any, int]) -> int | None:
    """A size where its symbols have the values ``at``; None where others remain."""
    found = expression(size)
    if at and hasattr(found, "subs"):
        found = int(found.subs(at))
    return found if isinstance(found, int) else None


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
    fixed = all(isinstance(s, int) and s <= EVALUATED for s in sizes)
    value = evaluate(recipe, nodes, {}) if nodes is not None and fixed else None
    return value is not None and bool(((value == 0) | (value == -torch.inf)).all())
