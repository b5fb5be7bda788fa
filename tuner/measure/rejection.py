"""Early rejection: the scoring of a plan ends when its scores prove that it loses too much.

Scores of 0 and 1 are judged on the hardest items first, exactly: a plan is rejected where it would
lose more than the limit even if it won every item left that the baseline missed, so that no plan
is ever rejected wrongly. Other scores are judged in a random order by paired one-sided t-tests,
one per batch, which share ``ALPHA``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attnpass.tuner.measure.bounds import binary

ALPHA = 0.01
"""The chance that a plan which keeps the limit is rejected, over all looks at its scores."""

LEAST = 20
"""Items below which no t-test is made."""


class Rejection:
    """A sequential test of plans against one baseline.

    Args:
        base: the baseline's scores by batch. limit: drop of the mean score beyond which a plan
            need not be scored further. seed: of the order of scores that are not 0 and 1.
    """

    def __init__(self, base: Mapping[int, Tensor], limit: float, seed: int = 0) -> None:
        self.base, self.limit = dict(base), limit
        self.exact = all(binary(x) for x in self.base.values())
        self.losses = {batch: float((1 - x).sum()) for batch, x in self.base.items()}
        self._shuffled = sorted(self.base)
        random.Random(seed).shuffle(self._shuffled)

    @property
    def order(self) -> list[int]:
        """The batches, hardest first: those on which plans lost most items so far.

        At first those of which the baseline itself misses most.
        """
        if not self.exact:
            return list(self._shuffled)
        return sorted(self.base, key=lambda i: -self.losses[i] / max(len(self.base[i]), 1))

    def note(self, found: Mapping[int, Tensor]) -> None:
        """Remember where a plan lost items."""
        for batch, scores in found.items():
            self.losses[batch] += float((self.base[batch] - scores).clamp_min(0).sum())

    def __call__(self, found: Mapping[int, Tensor]) -> bool:
        """Whether scores by batch, those known so far, are enough to reject their plan."""
        if len(found) == len(self.base):
            return False
        ours, theirs = torch.cat([*found.values()]), torch.cat([self.base[i] for i in found])
        if not (self.exact and binary(ours)):
            return not self.exact and self._unlikely(theirs - ours)
        left = [x for i, x in self.base.items() if i not in found]
        total = len(ours) + sum(len(x) for x in left)
        hope = sum(float((1 - x).sum()) for x in left)
        return (float((theirs - ours).sum()) - hope) / total > self.limit

    def _unlikely(self, drops: Tensor) -> bool:
        """Whether the mean drop is over the limit, by a t-test at its share of the level."""
        from scipy import stats

        n = len(drops)
        spread = float(drops.std()) if n > 1 else math.inf
        if n < LEAST or spread == 0:
            return False
        t = (float(drops.mean()) - self.limit) / (spread / math.sqrt(n))
        return bool(stats.t.sf(t, n - 1) < ALPHA / max(len(self.base) - 1, 1))


def positions(sizes: Sequence[int], batches: Sequence[int]) -> dict[int, list[int]]:
    """The positions of each batch's items, where the batches stand one after the other."""
    found, start = dict[int, list[int]](), 0
    for i in batches:
        found[i] = list(range(start, start + sizes[i]))
        start += sizes[i]
    return found


def by_batch(scores: Tensor, sizes: Sequence[int], batches: Sequence[int]) -> dict[int, Tensor]:
    """Scores ``[n]`` of batches of these sizes, one after the other, by batch."""
    parts = scores.split([sizes[i] for i in batches])
    return dict(zip(batches, parts, strict=True))
