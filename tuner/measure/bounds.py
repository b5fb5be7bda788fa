"""One-sided bounds on a plan's drop that paired per-item scores prove.

Scores are one number per item, higher is better. ``drop`` is the mean of baseline minus plan.
scipy is imported where it is needed: showing stored bounds takes none of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Bound:
    """A plan's drop against the baseline over a set of items, and the bound that they prove.

    Attributes:
        items: how many items.
        score: the plan's mean score. drop: baseline's mean minus the plan's.
        upper: one-sided upper bound on the true drop at ``confidence``.
    """

    items: int
    score: float
    drop: float
    upper: float
    confidence: float

    def as_dict(self) -> dict[str, float]:
        """The bound as plain JSON types."""
        return dict(self.__dict__)


def bound(base: Tensor, plan: Tensor, confidence: float = 0.95, items: int | None = None) -> Bound:
    """The paired bound of two score vectors over the same items.

    With ``items`` the bound that so many items would give, were they distributed like these.

    For scores of 0 and 1 Tango's score interval (1998) for paired proportions, otherwise Student's
    t; never below the exact bound for no loss at all, ``range * (1 - alpha^(1/n))``.

    Raises:
        ValueError: the vectors differ in length or are empty.
    """
    from scipy import stats

    if base.shape != plan.shape or not len(base):
        raise ValueError(f"expected paired scores, got {len(base)} and {len(plan)}")
    n, alpha = items or len(base), 1 - confidence
    drop = float((base - plan).mean())
    if binary(base) and binary(plan):
        lost, won = (n * float(x.double().mean()) for x in (base > plan, base < plan))
        upper, span = _tango(lost, won, n, float(stats.norm.ppf(confidence))), 1.0
    else:
        spread = float((base - plan).std()) if len(base) > 1 else math.inf
        t = float(stats.t.ppf(confidence, max(n - 1, 1)))
        upper = drop + t * spread / math.sqrt(n)
        span = max(float((base - plan).abs().max()), float(base.max() - base.min()))
    return Bound(
        n, float(plan.mean()), drop, max(upper, span * (1 - alpha ** (1 / n))), confidence
    )


def binary(scores: Tensor) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def _tango(lost: float, won: float, n: int, z: float) -> float:
    """Upper end of Tango's interval for ``(lost - won) / n``."""
    from scipy import optimize

    def excess(d: float) -> float:
        # q is the maximum-likelihood share of `won` under a true difference d
        b = -lost - won + (2 * n - lost + won) * d
        c = -won * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        return (n * d - (lost - won)) / math.sqrt(max(variance, 1e-300)) - z

    low = max((lost - won) / n, -1.0) + 1e-12
    if excess(1 - 1e-9) <= 0:
        return 1.0
    return float(optimize.brentq(excess, low, 1 - 1e-9))


def needed(max_drop: float, confidence: float = 0.95) -> int:
    """How many items prove ``max_drop`` when not a single one is lost; 0 for no drop at all."""
    if max_drop <= 0:
        return 0
    return math.ceil(math.log(1 - confidence) / math.log(1 - min(max_drop, 0.999)))
