"""One timing protocol: warm up, interleave, pair, interval. Times are in milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats


@dataclass(frozen=True)
class Ratio:
    """Baseline time over candidate time, from pairs of the same round.

    Attributes:
        median: the speed-up; above 1 the candidate is faster.
        low, high: 95 % interval of the median (order statistics).
        pairs: how many.
    """

    median: float
    low: float
    high: float
    pairs: int

    def as_dict(self) -> dict[str, float]:
        """The ratio as plain JSON types."""
        return dict(self.__dict__)


def ratio(base: Sequence[float], candidate: Sequence[float], confidence: float = 0.95) -> Ratio:
    """The paired ratio of two interleaved series.

    Raises:
        ValueError: the series differ in length or are empty.
    """
    if len(base) != len(candidate) or not base:
        raise ValueError(f"expected paired times, got {len(base)} and {len(candidate)}")
    values = sorted(b / c for b, c in zip(base, candidate, strict=True))
    n = len(values)
    # the k-th value from each end bounds the median with the binomial's probability
    k = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    k = max(k - 1, 0)
    return Ratio(statistics.median(values), values[k], values[n - 1 - k], n)


def interleave(
    runs: Sequence[Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 3,
    synchronise: Callable[[], Any] | None = None,
    tick: Callable[[], None] | None = None,
) -> list[list[float]]:
    """Times of each of ``runs`` in ``rounds`` rounds, order turned by one every round.

    ``synchronise`` waits for an asynchronous device; ``tick`` is called once a round.
    """
    wait = synchronise or (lambda: None)
    for run in runs:
        for _ in range(warmup):
            run()
    wait()
    times: list[list[float]] = [[] for _ in runs]
    for i in range(rounds):
        for j in range(len(runs)):
            at = (i + j) % len(runs)
            start = time.perf_counter()
            runs[at]()
            wait()
            times[at].append((time.perf_counter() - start) * 1e3)
        if tick:
            tick()
    return times


def floor(base: Sequence[float], again: Sequence[float]) -> float:
    """What cannot be told apart: how far the interval of two identical runs is from 1."""
    same = ratio(base, again)
    return max(abs(same.low - 1), abs(same.high - 1))
