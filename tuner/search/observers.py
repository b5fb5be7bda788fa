"""Others who are told what a run finds; none of them can end it or change its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attnpass.tuner.search.plan_row import PlanRow
from attnpass.tuner.search.result import RunResult


class Observer(Protocol):
    """One who is told what a run finds. It may raise anything: then it is told no more."""

    name: str
    """The option that asked for it."""

    def judged(self, row: PlanRow) -> None:
        """A plan was scored, timed or judged; told again whenever more is known of it."""

    def finished(self, result: RunResult, files: Mapping[str, str]) -> None:
        """The run ended, as its result says; ``files`` that were written for it, by name."""


class Observers:
    """The observers of one run.

    Args:
        say: prints one line on an observer that failed and is left out from then on.
    """

    def __init__(
        self, observers: Sequence[Observer] = (), say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.observers, self.say = list(observers), say

    def judged(self, row: PlanRow) -> None:
        """Tell all of a plan."""
        self._tell(lambda observer: observer.judged(row))

    def finished(self, result: RunResult, files: Mapping[str, str]) -> None:
        """Tell all of the end."""
        self._tell(lambda observer: observer.finished(result, files))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self.observers):
            try:
                call(observer)
            except Exception as error:
                self.observers.remove(observer)
                self.say(
                    f"{observer.name} failed, the run goes on without it: {first_line(error)}"
                )


def first_line(error: Exception) -> str:
    """The kind of an error, and the first line of its message."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
