"""Which plans deserve the held-out look: by their gain and the chance that it is proven.

scipy is imported where it is needed: showing results takes none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from attnpass.tuner.measure import Bound, bound

T = TypeVar("T")

LEAST_CHANCE = 0.05
"""Chance of a proof below which a plan is not looked at."""

ALPHA = 0.05
"""Probability of a wrong claim, shared by the finalists (Bonferroni)."""


def chance(
    base: Tensor,
    plan: Tensor,
    limit: float,
    items: int,
    confidence: float,
    correction: tuple[float, float] | None = None,
) -> float:
    """How likely ``items`` new ones prove a drop within ``limit``, 0 to 1, by normal errors.

    Args:
        base, plan: scores ``[N]`` of the items that select.
        correction: how much the bound is above what these items say, and its standard error, where
            more is known than they.
    """
    from scipy import stats

    above, error = correction or (0.0, standard_error(bound(base, plan)))
    foreseen = bound(base, plan, confidence, items)
    error = math.hypot(error, standard_error(foreseen))
    return float(stats.norm.cdf((limit - foreseen.upper - above) / max(error, 1e-12)))


def standard_error(proven: Bound) -> float:
    """The standard error that an upper bound implies."""
    from scipy import stats

    return (proven.upper - proven.drop) / float(stats.norm.ppf(proven.confidence))


def choose(
    plans: Sequence[T],
    gain: Callable[[T], float],
    likely: Callable[[T, float], float],
    most: int,
) -> list[T]:
    """Up to ``most`` plans that promise the largest proven gain, fastest first.

    A slower plan adds its gain times the chance that it is proven and no faster one is. The more
    plans, the closer each bound must be; so few may promise more than many.

    Args:
        gain: of a plan; those at 0 or below are left out. likely: the chance that a plan is
            proven at a confidence.
    """
    best: list[T] = []
    value = 0.0
    for count in range(1, most + 1):
        rated = [(gain(p), likely(p, 1 - ALPHA / count), p) for p in plans]
        rated = [row for row in rated if row[0] > 0 and row[1] >= LEAST_CHANCE]
        chosen: list[tuple[float, float, T]] = []
        for _ in range(min(count, len(rated))):
            chosen.append(max(rated, key=lambda row: _promise([*chosen, row])))
        promise = _promise(chosen)
        if promise > value:
            value, best = promise, [p for _, _, p in sorted(chosen, key=lambda row: -row[0])]
    return best


def _promise(rows: Sequence[tuple[float, float, T]]) -> float:
    """The expected gain, where a likelier plan is proven whenever a less likely one is."""
    total = likeliest = 0.0
    for gain, likely, _ in sorted(rows, key=lambda row: (-row[0], -row[1])):
        total += gain * max(likely - likeliest, 0.0)
        likeliest = max(likeliest, likely)
    return total
