"""The compiled baseline, and what no plan can gain over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attnpass.batch import items
from attnpass.errors import MeasureError
from attnpass.plan import Plan, assign
from attnpass.tuner.measure import Conditions, Ratio, median_ms
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.leaks import length
from attnpass.tuner.search.result import LOSSLESS
from attnpass.tuner.search.timed import Timed, unlike

GAIN = 0.01
"""A choice that provably makes the model faster by less than this share is left out."""


@dataclass(frozen=True)
class Ceiling:
    """The compiled baseline, and the speed-ups that no plan can beat.

    Attributes:
        base_ms: median of the faster of the unchanged model and the lossless plan.
        softer: whether the latter is the baseline. floor: how far two identical runs differ.
        softmax, bare, skipped: the unchanged model over the lossless plan, over attention that
            reads q, k, v once, and over all skippable blocks left out.
        over_bare, over_skipped: the baseline over the last two.
        reliable: whether the floor is narrow enough for a conclusion.
        conditions: of the machine meanwhile, None where they are not known.
    """

    base_ms: float
    softer: bool
    floor: float
    softmax: Ratio
    bare: Ratio
    skipped: Ratio
    over_bare: Ratio
    over_skipped: Ratio
    reliable: bool = True
    conditions: Conditions | None = None

    @property
    def ceiling(self) -> float:
        """The speed-up that no plan can beat that keeps the projections."""
        return self.over_bare.median

    @property
    def ceiling_skipat(self) -> float:
        """The speed-up that no plan can beat that leaves attention blocks out."""
        return self.over_skipped.median

    @property
    def most(self) -> float:
        """The largest speed-up that any plan may have, its noise included."""
        return max(self.over_bare.high, self.over_skipped.high, 1.0) * (1 + self.floor)

    def allows(self, form: str) -> bool:
        """Whether a form may gain anything: only skipat saves more than attention itself."""
        best = self.over_skipped if form == "skipat" else self.over_bare
        return not self.reliable or best.high * (1 + self.floor) >= 1 + GAIN

    @property
    def baseline(self) -> str:
        """The name of the baseline."""
        return LOSSLESS if self.softer else "unchanged model, compiled"

    @property
    def share(self) -> float:
        """Attention's share of the baseline's time, 0 to 1."""
        return max(0.0, 1 - self.ceiling**-1)

    @property
    def shares(self) -> tuple[float, float]:
        """The interval of this share."""
        low, high = (max(0.0, 1 - 1 / x) for x in (self.over_bare.low, self.over_bare.high))
        return low, high


CALL_S = 0.1
"""Seconds that a call of fewer items takes at least."""

LONG_S = 4 * CALL_S
"""A call that takes as long is timed with fewer items first."""


def items_to_time(inspection: Inspection, per_item: float) -> int:
    """How many items to time first instead of a whole batch as it is served; 0 for all of it.

    On a CPU, where a batch only repeats the work of an item. ``per_item``: about how many seconds
    the model takes for one. All of it, too, where batches have not as many rows as targets.
    """
    task = inspection.task
    count = items(task.example)
    if any(items(batch) != length(y) for batch, y in task.validation):
        return 0
    if inspection.kind != "cpu" or task.examples or count * per_item < LONG_S:
        return 0
    fewer = max(1, math.ceil(CALL_S / per_item))
    return fewer if fewer < count else 0


def measure_ceiling(latencies: Latencies, few: int = 0) -> Ceiling:
    """The compiled baseline, its noise, and the two ceilings.

    With only a ``few`` items of the batch, if a short look at all of them says that the speed-up
    of the lossless plan is the same; the baseline's time is that of the whole batch in any case.

    Raises:
        MeasureError: the worker could not measure.
    """
    progress = latencies.session.progress
    with progress.stage("baseline latency and ceiling", 1) as step:
        timed, whole = _few(latencies, few) if few else (None, None)
        if timed is None or whole is None:
            latencies.items = 0
            timed = whole = latencies.ceiling()
        step("")
    first, noise = timed.ratio(2), timed.floor or 0.0
    softer = first.low > 1 + noise
    reference = 2 if softer else 0
    found = Ceiling(
        base_ms=median_ms(whole.times[reference]),
        softer=softer,
        floor=noise,
        softmax=first,
        bare=timed.ratio(3),
        skipped=timed.ratio(4),
        over_bare=timed.ratio(3, reference),
        over_skipped=timed.ratio(4, reference),
        reliable=timed.reliable,
        conditions=timed.conditions,
    )
    if softer:
        progress.say(f"lossless (exact softmax by the kernels): {first}, nothing to recover")
    progress.say(
        f"baseline ({found.baseline}): {found.base_ms:.2f} ms; two identical runs"
        f" differ by up to {found.floor:.1%}"
        + ("" if found.conditions is None else f"; {found.conditions}")
    )
    low, high = found.shares
    progress.say(
        f"attention is {found.share:.0%} [{low:.0%}, {high:.0%}] of the baseline's time, no plan"
        f" can gain more over it than {found.over_bare} (skipat, which drops the projections too:"
        f" {found.over_skipped})"
        + ("" if found.reliable else "; unreliable, so nothing follows from it"),
        style="bold",
    )
    return found


def _few(latencies: Latencies, few: int) -> tuple[Timed | None, Timed | None]:
    """The ceiling from a few items, and the first three of its series from the whole batch.

    Nothing where these do not agree, or cannot be taken.
    """
    exact = Plan(assign(latencies.inspection.sites, "softmax")[0])
    say = latencies.session.progress.say
    try:
        latencies.items = few
        timed = latencies.ceiling()
        latencies.items = 0
        whole = latencies.short(LOSSLESS, [None, None, exact])
    except MeasureError as error:
        say(f"not timed with {few} items: {error}", style="yellow")
        return None, None
    finally:
        latencies.items = few
    apart = unlike(timed.ratio(2), timed.floor or 0.0, whole.ratio(2), whole.floor or 0.0)
    count = items(latencies.inspection.task.example)
    told = f"lossless with {few} items {timed.ratio(2)}, with {count} {whole.ratio(2)}"
    if apart:
        say(f"{told}: all {count} are timed", style="yellow")
        return None, None
    say(f"{told}: what only proposes is timed with {few}, finalists with {count}", style="dim")
    return timed, whole
