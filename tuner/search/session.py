"""What the stages of one run share: stored measurements, progress, and the request to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attnpass.errors import PlanError
from attnpass.plan import Plan
from attnpass.store import Store
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search.budget import Budget
from attnpass.tuner.search.observers import Observers
from attnpass.tuner.search.stored import whole

Context = Mapping[str, Any]
"""All that a measurement depends on: a part of its key in the store."""

Value = dict[str, Any]
"""A measurement as JSON."""


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a run to stop."""


class NotReproducedError(Exception):
    """A stored measurement is not what this run measures: nothing stored is to be believed."""


class StopRequest:
    """Whether Ctrl-C or a signal asked the run to stop; read before every measurement."""

    def __init__(self) -> None:
        self.requested = self.closed = False

    def close(self) -> None:
        """From now on nothing stops the run: what it found is stored, which takes a moment."""
        self.closed = True

    def check(self) -> None:
        """Stop here if it was asked for.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.requested and not self.closed:
            self.close()
            raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM or SIGHUP stops before the next measurement, a second one at once.

        Raising in the handler itself is not enough: Python drops an error raised in a finaliser.
        """

        def stop(*_: object) -> None:
            self.check()
            self.requested = True

        heard = [s for s in STOPS if signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores one
        before = {s: signal.signal(s, stop) for s in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Session:
    """The store of one run, with its progress and its request to stop.

    Args:
        run: id of the run. refresh: measure again what is stored. budget: the run's time.
        observers: who is told of plans.

    Attributes:
        verified: whether the stored scores of a plan were reproduced in this run.
    """

    def __init__(
        self,
        run: str,
        store: Store,
        progress: ProgressPrinter,
        *,
        refresh: bool = False,
        budget: Budget | None = None,
        observers: Observers | None = None,
    ) -> None:
        self.run, self.store, self.progress, self.refresh = run, store, progress, refresh
        self.budget = Budget() if budget is None else budget
        self.observers = observers or Observers()
        self.stop = StopRequest()
        self.verified = False
        self._ground: Context = {}
        self._explained: set[str] = set()

    def rest_on(self, baseline: str) -> None:
        """Look for measurements that rest on this measurement of the baseline, and no others.

        All that is kept from here on has it in its context, so that a baseline that is measured
        anew leaves nothing of the old one to be found, whatever happens to this run.
        """
        self._ground = {"baseline": baseline} if baseline else {}

    def resting(self, context: Context) -> Context:
        """A context with the measurement of the baseline that it rests on."""
        return {**context, **self._ground}

    def find(
        self,
        kind: str,
        subject: str,
        context: Context,
        *,
        fresh: bool = False,
        fits: Callable[[Value], bool] = lambda value: True,
    ) -> Value | None:
        """A stored measurement; a miss that had a near hit says which field differs.

        With ``refresh`` only a ``fresh`` one, committed by this run, is a hit. A damaged one, or
        one that does not fit what it is wanted for, is a miss too.

        Raises:
            KeyboardInterrupt: the run is to stop.
        """
        self.stop.check()
        if self.refresh and not fresh:
            return None
        value, why = self.store.get(kind, subject, self.resting(context))
        if value is not None and not (whole(kind, value) and fits(value)):
            value, why = None, f"the stored {kind} is damaged"
        # another baseline has another reason, which was said with it
        said = why in ("never measured", "", *self._explained) or why.startswith("baseline")
        if value is None and not said:
            self._explained.add(why)
            near = self.store.newest(kind, subject)
            more = f" (attnpass results --why {near['key'][:12]})" if near else ""
            self.progress.say(f"measuring again what is stored: {why}{more}", style="dim")
        return value

    def plan(self, name: str) -> Plan | None:
        """A stored plan; None, with a reason, where it is damaged or its tensors are missing."""
        try:
            return self.store.plan(name)
        except PlanError as error:
            self.progress.say(f"making again what is stored: {error}", style="dim")
            return None

    def keep(
        self, kind: str, subject: str, context: Context, value: Value, *, outcome: str = "ok"
    ) -> None:
        """Commit one measurement."""
        context = self.resting(context)
        self.store.put(kind, subject, context, value, outcome=outcome, run=self.run)

    def measured(
        self,
        kind: str,
        subject: str,
        context: Context,
        measure: Callable[[], Value],
        fits: Callable[[Value], bool] = lambda value: True,
    ) -> Value:
        """A measurement from the store where it fits, else taken now and committed.

        Raises:
            KeyboardInterrupt: the run is to stop.
        """
        value = self.find(kind, subject, context, fits=fits)
        if value is None:
            value = measure()
            self.keep(kind, subject, context, value)
        return value
