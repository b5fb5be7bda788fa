"""Interleaved times of the plans of one run, from the store or from the worker."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from attnpass.errors import MeasureError
from attnpass.files import uncollected
from attnpass.plan import Plan
from attnpass.tuner.measure import (
    Failure,
    Job,
    PackedPlan,
    PackedRequest,
    Pool,
    Protocol,
    Reply,
    Times,
    Worker,
)
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.plan_files import plans_folder
from attnpass.tuner.search.session import Session, Value
from attnpass.tuner.search.timed import Timed, differing, has_twins, timed_of

ESCALATION = (Protocol(1), Protocol(2), Protocol(2, threads=1), Protocol(2, 1, pinned=True))
"""How a measurement is taken, one after the other until it is steady; rounds as a multiple."""

FIRST = 7
"""Rounds of the first look at a measurement; each look that decides nothing doubles them."""

THREADS = 2
"""From here on in ``ESCALATION`` the model runs otherwise than it is served."""

TRUSTED = 3600.0
"""Seconds for which times are taken from the store unseen; older ones are run again shortly."""

LEAST_PATIENCE = 20.0
"""Seconds that a request is waited for even where the budget is spent."""

OVER = 0.08
"""The share of the budget by which a request may end after it."""

SHORT = 7
"""Rounds of a short run that re-checks stored times."""


@dataclass(eq=False)
class Latencies:
    """Where a run takes its latencies from: the store, else the worker.

    Attributes:
        begin: which of ``ESCALATION`` a measurement begins with.
        stale: whether stored times were found to be none of this machine as it is now.
        items: of each call, 0 for all of the batch as it is served.
        left: the seconds that the stage may still take. asked: of each request, how many plans it
            was for and the seconds it took. taken: kinds and subjects that this run measured.
    """

    inspection: Inspection
    session: Session
    worker: Worker | Pool
    begin: int = 0
    stale: bool = False
    items: int = 0
    left: Callable[[], float] = field(default=lambda: math.inf)
    asked: list[tuple[int, float]] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)

    @property
    def patience(self) -> float:
        """Seconds to wait for a reply: as asked for, never long beyond the run's budget."""
        most = max(LEAST_PATIENCE, self.session.budget.until(OVER))
        return min(self.inspection.settings.timeout, most)

    @property
    def timing(self) -> dict[str, Any]:
        """All that times depend on beside their subject."""
        return {**self.inspection.timing, **({"items": self.items} if self.items else {})}

    def ceiling(self) -> Timed:
        """The five series of ``Worker.ceiling``.

        Raises:
            MeasureError: the worker could not measure.
        """
        return self._times("ceiling", "ceiling", None, spare=False, decides=True)

    def times(
        self,
        subject: str,
        plans: Sequence[Plan | None],
        *,
        spare: bool = False,
        decides: bool = False,
    ) -> Timed:
        """Milliseconds of each plan per round; None is the unchanged model.

        Where the first two are the same, they tell the noise: times that are too noisy
        are taken again, with more rounds, then fewer threads, then on one processor. Times that
        ``decides`` something are re-checked where they come from the store. A stored failure is
        tried again where the run cannot ``spare`` these times, or waits longer now.

        Raises:
            MeasureError: the worker could not measure.
        """
        return self._times("latency", subject, plans, spare=spare, decides=decides)

    def short(self, subject: str, plans: Sequence[Plan | None]) -> Timed:
        """As ``times``, in one look that is not repeated however noisy it is.

        Raises:
            MeasureError: the worker could not measure.
        """
        subject = f"{subject}, shortly"
        value = self._stored("latency", subject, plans, False, False)
        if value is None:
            self.session.stop.check()
            reply = self._ask(plans, Protocol(SHORT, items=self.items))
            value = self._keep("latency", subject, plans, reply)
        return _read(subject, value, plans)

    @property
    def workers(self) -> int:
        """How many measurements are taken at once."""
        return max(1, len(self.worker.workers)) if isinstance(self.worker, Pool) else 1

    def take_ahead(
        self, wanted: Mapping[str, Sequence[Plan | None]], *, decides: bool = False
    ) -> None:
        """Measure independent subjects, each by one worker of a pool, several at once.

        Each is committed when its reply comes; ``times`` gives it. One worker takes none ahead.
        """
        if not isinstance(self.worker, Pool):
            return
        self.session.stop.check()
        self.worker.timeout = self.patience
        jobs, packed = dict[str, Job[Reply]](), WeakValueDictionary[int, PackedPlan]()
        for subject, plans in wanted.items():
            if self._stored("latency", subject, plans, True, decides) is None:
                jobs[subject] = self._job(subject, plans, packed)
        with uncollected():  # of a thousand workers, dozens reply in a second
            for subject, reply in self.worker.gather(jobs):
                self._keep("latency", subject, wanted[subject], reply)

    def each(
        self, plans: Mapping[str, Plan], beside: Plan | None
    ) -> Iterator[tuple[str, Timed | MeasureError]]:
        """The times of each plan beside one that runs twice: ``[beside, beside, plan]``.

        Those that are not stored are taken together, as many as there is time for, which runs
        ``beside`` once for all; where that fails, one after the other. A pool takes each by
        another worker. ``plans`` are by their subject in the store.
        """
        self.take_ahead({subject: [beside, beside, plan] for subject, plan in plans.items()})
        missing = {
            subject: plan
            for subject, plan in plans.items()
            if self._stored("latency", subject, [beside, beside, plan], True, False) is None
        }
        waiting = list(missing)
        while len(waiting) > 1 and self.left() > 0:
            count = self._affordable()
            group, waiting = waiting[:count], waiting[count:]
            told = f"{len(group)} choices"
            reply = self._steady(told, [beside, beside, *(missing[s] for s in group)])
            if isinstance(reply, Times):
                for i, subject in enumerate(group, 2):
                    together = [beside, beside, missing[subject]]
                    self._keep("latency", subject, together, reply.only(0, 1, i))
        for subject, plan in plans.items():
            if subject in missing and ("latency", subject) not in self.taken and self.left() <= 0:
                yield subject, MeasureError("expected time left in the budget, got none")
                continue
            try:
                yield subject, self.times(subject, [beside, beside, plan], spare=True)
            except MeasureError as error:
                yield subject, error

    def _affordable(self) -> int:
        """How many plans the stage can still time, two at least, by the requests so far."""
        per_plan = max((seconds / plans for plans, seconds in self.asked[-4:]), default=0.0)
        if math.isinf(self.left()) or not per_plan:
            return sys.maxsize
        return max(2, int(self.left() / per_plan) - 2)

    def of_threads(self, threads: int, rounds: int) -> Timed:
        """The unchanged model twice, with so many threads.

        Raises:
            MeasureError: the worker could not measure.
        """
        self.session.stop.check()
        reply = self._ask([None, None], Protocol(rounds, threads, items=self.items))
        if isinstance(reply, Failure):
            raise MeasureError(f"expected to measure, got {reply.outcome}: {reply.why}")
        return timed_of(reply.as_dict(), [None, None])

    def _times(
        self,
        kind: str,
        subject: str,
        plans: Sequence[Plan | None] | None,
        *,
        spare: bool,
        decides: bool,
    ) -> Timed:
        value = self._stored(kind, subject, plans, spare, decides)
        if value is None:
            reply = self._steady(subject, plans)
            value = self._keep(kind, subject, plans, reply)
        return _read(subject, value, plans)

    def _stored(
        self,
        kind: str,
        subject: str,
        plans: Sequence[Plan | None] | None,
        spare: bool,
        decides: bool,
    ) -> Value | None:
        """What is stored and may be believed; times of one number of rounds, enough for a look."""
        runs = 5 if plans is None else len(plans)

        def fits(value: Value) -> bool:
            lengths = [len(x) for x in value.get("times", [[0] * FIRST] * runs)]
            return len(lengths) == runs and len({*lengths}) == 1 and lengths[0] >= FIRST

        timing, taken = self.timing, (kind, subject) in self.taken
        if self.stale and not taken:
            return None
        value = self.session.find(kind, subject, timing, fresh=taken, fits=fits)
        if value is None or taken:
            return value
        again = self._again(value, spare) or not self._holds(value, plans, decides)
        return None if again else value

    def _keep(
        self, kind: str, subject: str, plans: Sequence[Plan | None] | None, reply: Reply
    ) -> Value:
        """Commit a reply; gives it as it is stored."""
        value = reply.as_dict() | {
            "limit": self.worker.timeout,
            "taken": time.time(),
        }
        outcome = reply.outcome
        if isinstance(reply, Times) and not timed_of(value, plans).reliable:
            outcome = "unreliable"
        timing = self.timing
        self.session.keep(kind, subject, timing, value, outcome=outcome)
        if isinstance(reply, Times):
            self.taken.add((kind, subject))
        return self.session.find(kind, subject, timing, fresh=True) or value

    def _again(self, value: Value, spare: bool) -> bool:
        """Whether a stored failure may end otherwise, or must."""
        outcome = value.get("outcome", "ok")
        if outcome in ("ok", "unreliable"):
            return bool(outcome == "unreliable")
        timeout = self.inspection.settings.timeout
        slow = outcome == "timeout" and value["limit"] < timeout
        return not spare or slow or outcome == "killed"

    def _holds(self, value: Value, plans: Sequence[Plan | None] | None, decides: bool) -> bool:
        """Whether stored times are those of now, as far as a short run tells."""
        recent = time.time() - value.get("taken", 0.0) < TRUSTED
        if value.get("outcome", "ok") != "ok" or not decides or recent:
            return True
        reply = self._ask(plans, Protocol(SHORT, items=self.items))
        if isinstance(reply, Failure):
            return False
        changed = differing(timed_of(value, plans), timed_of(reply.as_dict(), plans))
        if changed:
            self.stale = True
            self.session.progress.say(
                f"stored times are not those of now ({changed}); measured anew", style="yellow"
            )
        return not changed

    def _steady(self, subject: str, plans: Sequence[Plan | None] | None) -> Reply:
        """As ``_steps``, one after the other by the worker."""
        steps = self._steps(subject, plans)
        protocol = next(steps)
        while True:
            try:
                protocol = steps.send(self._ask(plans, protocol))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def _job(
        self,
        subject: str,
        plans: Sequence[Plan | None],
        packed: WeakValueDictionary[int, PackedPlan],
    ) -> Job[Reply]:
        """As ``_steady``, for a pool."""
        steps = self._steps(subject, plans)
        request = PackedRequest.of(plans, next(steps), packed)
        expected = ["" if p is None else p.hash for p in request.plans or ()]
        while True:
            reply = _proven(expected, (yield request))
            try:
                request = replace(request, protocol=steps.send(reply))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def _steps(
        self, subject: str, plans: Sequence[Plan | None] | None
    ) -> Generator[Protocol, Reply, Reply]:
        """The first measurement that is steady; the steadiest where none is.

        Yields how a measurement is to be taken, is sent its reply.
        """
        rounds, say = self.inspection.settings.limits["rounds"], self.session.progress.say
        least, best = math.inf, None
        steps = ESCALATION if self.inspection.kind == "cpu" else ESCALATION[:2]
        for i, step in enumerate(steps[self.begin :], self.begin):
            reply = yield from self._looks(plans, replace(step, rounds=rounds * step.rounds))
            if isinstance(reply, Failure):
                return best or reply
            found = timed_of(reply.as_dict(), plans)
            noise = found.floor or 0.0
            if noise < least:
                least, best = noise, reply
            if found.reliable and i >= THREADS:
                self.begin = i  # what follows is taken as what was steady, and compares with it
            if found.reliable or self.left() <= 0:
                return reply
            under = "" if found.conditions is None else f" ({found.conditions})"
            say(f"{subject}: two identical runs differ by up to {noise:.0%}{under}", style="dim")
        advice = "close other programs, or set OMP_NUM_THREADS to fewer processors"
        say(f"{subject} is unreliable here, nothing is excluded by it: {advice}", style="yellow")
        assert best is not None
        return best

    def _looks(
        self, plans: Sequence[Plan | None] | None, protocol: Protocol
    ) -> Generator[Protocol, Reply, Reply]:
        """Times of as many rounds as settle the matter, at most those of the protocol."""
        most, seconds = protocol.rounds, self.inspection.settings.limits["seconds"]
        found, end = None, time.monotonic() + seconds
        first = FIRST if has_twins(plans) else most  # else nothing tells the noise
        while True:
            done = 0 if found is None else len(found.times[0])
            more = max(done, first)
            more = more if most - done - more >= FIRST else most - done
            memory = not (done or self.items)
            reply = yield replace(protocol, rounds=more, memory=memory, items=self.items)
            if isinstance(reply, Failure):
                return found if found is not None and reply.outcome == "timeout" else reply
            found = reply if found is None else found.and_then(reply)
            over = time.monotonic() > end or self.left() <= 0
            if len(found.times[0]) >= most or over or timed_of(found.as_dict(), plans).settled:
                return found

    def _ask(self, plans: Sequence[Plan | None] | None, protocol: Protocol) -> Reply:
        start = time.monotonic()
        self.worker.timeout = self.patience
        try:
            return self._answer(plans, protocol)
        finally:
            self.asked.append((5 if plans is None else len(plans), time.monotonic() - start))

    def _answer(self, plans: Sequence[Plan | None] | None, protocol: Protocol) -> Reply:
        if plans is None:
            return self.worker.ceiling(protocol)
        with plans_folder(self.session.store.path) as folder:
            files = [
                None if p is None else str(p.save(folder / f"{i}.json"))
                for i, p in enumerate(plans)
            ]
            reply = self.worker.measure(files, protocol)
        hashes = {id(p): "" if p is None else p.hash for p in {id(p): p for p in plans}.values()}
        return _proven([hashes[id(p)] for p in plans], reply)


def _read(subject: str, value: Value, plans: Sequence[Plan | None] | None) -> Timed:
    """The times that are stored.

    Raises:
        MeasureError: a failure is.
    """
    if value.get("outcome", "ok") not in ("ok", "unreliable"):
        raise MeasureError(
            f"expected to measure {subject}, got {value['outcome']}: {value.get('why')}"
        )
    return timed_of(value, plans)


def _proven(expected: Sequence[str], reply: Reply) -> Reply:
    """The reply, a failure where other plans ran than those of the ``expected`` hashes."""
    if not isinstance(reply, Failure) and reply.hashes != expected:
        return Failure("inaccurate", "another plan ran than was asked for")
    return reply
