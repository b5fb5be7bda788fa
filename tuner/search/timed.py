"""Interleaved times as a run reads them: how noisy they are, and whether they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnpass.plan import Plan
from attnpass.tuner.measure import LOOK, Conditions, Ratio, floor, median_ms, ratio
from attnpass.tuner.search.session import Value

WIDE = 0.05
"""Two identical runs that differ by more than this share decide nothing: they are run again."""

PRECISE = 0.03
"""Half the width of an interval, as a share of its middle, with which a measurement may end."""

ALIKE = 0.01
"""The same, where the interval leaves open which of two is faster."""

DRIFT = 1.3
"""How many times slower or quicker the unchanged model may be than when it was stored."""


@dataclass(frozen=True)
class Timed:
    """Interleaved times and how far they are to be trusted.

    Attributes:
        times: milliseconds, one row per model, one column per round.
        floor: how far two identical runs differ, None where the unchanged model ran once.
        conditions: of the machine, None where they are not known.
        shapes: median milliseconds per model and example of the task. peaks: MiB that a call of
            each model takes at most; both may be empty.
    """

    times: list[list[float]]
    floor: float | None = None
    conditions: Conditions | None = None
    shapes: Sequence[Sequence[float]] = ()
    peaks: Sequence[float] = ()

    @property
    def reliable(self) -> bool:
        """Whether two identical runs are near enough."""
        return self.floor is None or self.floor <= WIDE

    def ratio(self, candidate: int, base: int = 0) -> Ratio:
        """The speed-up of one series over another."""
        return ratio(self.times[base], self.times[candidate], LOOK)

    @property
    def settled(self) -> bool:
        """Whether more rounds would change no decision.

        The floor is narrow, and each interval narrow and on one side of 1, or very narrow.
        """
        if self.floor is None or not self.reliable:
            return False
        for found in (self.ratio(i) for i in range(2, len(self.times))):
            width = (found.high - found.low) / 2 / found.median
            apart = found.low > 1 + self.floor or found.high < 1 - self.floor
            if width > (PRECISE if apart else ALIKE):
                return False
        return True


def timed_of(value: Value, plans: Sequence[Plan | None] | None) -> Timed:
    """The record of a measurement as it is stored; a ceiling begins with the same model twice."""
    times: list[list[float]] = value["times"]
    noise = floor(times[0], times[1], LOOK) if has_twins(plans) else None
    conditions = Conditions.from_dict(value.get("conditions"))
    more = (value.get(name) or () for name in ("shapes", "peaks"))
    return Timed(times, noise, conditions, *more)


def has_twins(plans: Sequence[Plan | None] | None) -> bool:
    """Whether the first two runs are the same; those of a ceiling are."""
    return plans is None or (len(plans) > 1 and plans[0] is plans[1])


def differing(stored: Timed, now: Timed) -> str:
    """What a short run has otherwise than what is stored; ``""`` where they agree."""
    was, base = median_ms(stored.times[0]), median_ms(now.times[0])
    if not was / DRIFT <= base <= was * DRIFT:
        return f"the unchanged model takes {base:.2f} ms, stored are {was:.2f}"
    for i in range(1, len(stored.times)):
        old, new = stored.ratio(i), now.ratio(i)
        if unlike(old, stored.floor or 0.0, new, now.floor or 0.0):
            return f"a speed-up of {new.median:.2f}x, stored is {old}"
    return ""


def unlike(old: Ratio, old_floor: float, new: Ratio, new_floor: float) -> bool:
    """Whether two measurements of one speed-up differ by more than the noise of both."""
    noise = 1 + WIDE + old_floor + new_floor
    return not old.low / noise <= new.median <= old.high * noise
