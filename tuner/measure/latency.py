"""One timing protocol: warm up, interleave, pair, give an interval. Times are in milliseconds.

scipy is imported where it is needed: showing stored ratios takes none of it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

LOOK = 0.984
"""Confidence of an interval that is looked at as pairs come in, up to four times: 95 % over all
looks (Pocock 1977). Seven pairs are the fewest that reach it."""

WARM_S = 0.5
"""Seconds after which a run counts as warm, however few calls they were."""


@dataclass(frozen=True)
class Ratio:
    """Baseline time over candidate time, from pairs of the same round.

    Attributes:
        median: the speed-up; above 1 the candidate is faster.
        low, high: interval of the median by order statistics: 95 %, or over all looks together.
        pairs: how many.
    """

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f}x [{self.low:.3f}, {self.high:.3f}]"

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
    k = _rank(n, confidence)
    return Ratio(statistics.median(values), values[k], values[n - 1 - k], n)


@cache
def _rank(n: int, confidence: float) -> int:
    """The rank from each end whose value bounds the median of ``n``, by the binomial."""
    from scipy import stats

    return max(int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)) - 1, 0)


def interleave(
    runs: Sequence[Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 3,
    synchronise: Callable[[], Any] | None = None,
    stopwatch: Callable[[Callable[[], Any]], float] | None = None,
    tick: Callable[[], None] | None = None,
) -> list[list[float]]:
    """Times of each of ``runs`` in ``rounds`` rounds, order turned by one every round.

    ``synchronise`` waits for an asynchronous device; ``stopwatch`` gives the milliseconds of a
    run, else the wall clock does; ``tick`` is called after each round.
    """
    wait = synchronise or (lambda: None)

    def wall(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        wait()
        return (time.perf_counter() - start) * 1e3

    clock = stopwatch or wall
    for run in runs:
        start = time.perf_counter()
        for _ in range(warmup):
            run()
            wait()
            if time.perf_counter() - start > WARM_S:
                break
    times: list[list[float]] = [[] for _ in runs]
    for i in range(rounds):
        for j in range(len(runs)):
            turn = (i + j) % len(runs)
            times[turn].append(clock(runs[turn]))
        if tick:
            tick()
    return times


def events() -> Callable[[Callable[[], Any]], float]:
    """A stopwatch of a GPU's own time, its caches cold.

    The GPU waits a millisecond before it starts, until the launches of the run have arrived.
    """
    import torch

    from attnpass.torch_internals import gpu_sleep

    flood = torch.empty(2**28, dtype=torch.int8, device="cuda")

    def stopwatch(run: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flood.zero_()
        gpu_sleep(2_000_000)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return stopwatch


def floor(base: Sequence[float], again: Sequence[float], confidence: float = 0.95) -> float:
    """The noise floor of speed-ups: how far the interval of two identical runs is from 1."""
    same = ratio(base, again, confidence)
    return max(abs(same.low - 1), abs(same.high - 1))


def percentile_ms(times: Sequence[float], share: float) -> float:
    """The least time that a ``share`` of a series, 0 to 1, does not exceed."""
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


def median_ms(times: Sequence[float]) -> float:
    """The median of a series, of an even number the larger of the two in the middle."""
    return sorted(times)[len(times) // 2]
