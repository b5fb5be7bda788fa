"""The time of a run: what is left of it, and what the stages that follow will need."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

STAGE = 0.1
"""The share of the budget that a stage of measuring may take."""


@dataclass(eq=False)
class Budget:
    """The seconds that a run may take.

    Attributes:
        seconds: in all, ``inf`` for any number. cut: what was left out for lack of time, in words.
    """

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    cut: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or more."""
        return max(0.0, self.seconds - (self.clock() - self.begun))

    def until(self, over: float) -> float:
        """Seconds until the budget is exceeded by a share, 0 or more."""
        return max(0.0, self.seconds * (1 + over) - (self.clock() - self.begun))

    def stage(self, share: float = STAGE, *, most: float = math.inf) -> Callable[[], float]:
        """The seconds that are left of a stage beginning now, which may take a ``share``.

        A stage ends with the run; ``most``: seconds that it takes in any case at most.
        """
        end = self.clock() + min(share * self.seconds, self.left, most)
        return lambda: max(0.0, end - self.clock())

    def shorten(self, what: str, seconds: float, wanted: float) -> None:
        """Note what got fewer seconds than it was to have, where it is much less."""
        if seconds < 0.9 * wanted:
            self.leave_out(f"{what}: {minutes(seconds)} of {minutes(wanted)}")

    def leave_out(self, what: str) -> None:
        """Note what there was no time for."""
        self.cut.append(what)


def minutes(seconds: float) -> str:
    """A time for people: ``40 s``, ``3.5 min``, ``2.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
