"""Several workers that measure at once: which of them gets a request, and whose reply counts.

A request is asked of one worker. Where workers are idle and nothing waits, one that takes long is
asked of a second worker, then of a third; the first reply counts, the others are dropped. A
request whose worker is lost is asked again. Every request ends in exactly one reply.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from attnpass.plan import Plan
from attnpass.tuner.measure.exchange import Failure, Protocol, Reply
from attnpass.tuner.measure.packing import PackedRequest
from attnpass.tuner.measure.pool_worker import Answer, Inbox, Lost, PoolWorker
from attnpass.tuner.measure.worker import ATTEMPTS

K = TypeVar("K")
T = TypeVar("T")

Job = Generator[PackedRequest, Reply, T]
"""One measurement: yields at least one request, is sent the reply of each, returns its result."""

POLL = 0.2
"""Seconds after which a wait looks at the clock."""

LATE = 2.0
"""How many times the median duration a request may take before an idle worker is asked, too."""

GRACE = 30.0
"""Seconds beyond the timeout, which a worker keeps itself, after which it is started anew."""


@dataclass(eq=False)
class Task:
    """One request of a job.

    Attributes:
        worker: that measured for this job before, asked again if it is idle.
        copies: how many workers are at it. lost: those that were lost at it.
        asked: how many workers were sent it. newest: it, as the last of them was.
        answered: whether a reply of it was handed over.
    """

    key: Any
    job: Job[Any]
    request: PackedRequest | None = None
    worker: PoolWorker | None = None
    copies: int = 0
    asked: int = 0
    lost: list[PoolWorker] = field(default_factory=list)
    newest: Sent | None = field(default=None, repr=False)
    answered: bool = False

    def begun(self) -> PackedRequest:
        """The request, made when it is needed first."""
        self.request = self.request or next(self.job)
        return self.request


@dataclass(eq=False)
class Sent:
    """A request that a worker has.

    Attributes:
        kind: how long it takes depends on it: the number of plans, and whether they are compiled.
    """

    task: Task
    worker: PoolWorker
    kind: tuple[int, bool]
    started: float


class Pool:
    """Workers of one device class, asked for several measurements at once, or like one worker.

    Args:
        workers: at least one. timeout: seconds per request. say: told what goes wrong.
        stopped: asked while waiting; true ends the wait with KeyboardInterrupt.

    Attributes:
        device: all that the workers' latencies depend on beside the task.
        counts: how many requests were ``sent``, how many of them as ``copies``, how many answers
            were ``dropped``, how often a worker was ``lost``.
    """

    def __init__(
        self,
        workers: Sequence[PoolWorker],
        *,
        timeout: float = 900.0,
        say: Callable[[str], None] = lambda text: None,
        stopped: Callable[[], bool] = lambda: False,
        inbox: Inbox | None = None,
    ) -> None:
        self.device, self.timeout = dict(workers[0].device), timeout
        self.say, self.stopped, self.inbox = say, stopped, inbox or Inbox()
        self.workers = dict.fromkeys(workers)
        self.idle = dict.fromkeys(workers)
        self.running: dict[Sent, None] = {}
        self.counts = Counter[str]()
        self._losses = Counter[PoolWorker]()
        self._durations: dict[tuple[int, bool], list[float]] = {}

    def measure(self, plans: Sequence[str | None], protocol: Protocol) -> Reply:
        """As ``Worker.measure``, by any worker."""
        loaded = [None if p is None else Plan.load(p) for p in plans]
        return self._ask(PackedRequest.of(loaded, protocol))

    def ceiling(self, protocol: Protocol) -> Reply:
        """As ``Worker.ceiling``, by any worker."""
        return self._ask(PackedRequest(protocol))

    def _ask(self, request: PackedRequest) -> Reply:
        def job() -> Job[Reply]:
            return (yield request)

        ((_, reply),) = self.gather({"": job()})
        return reply

    def gather(self, jobs: Mapping[K, Job[T]]) -> Iterator[tuple[K, T]]:
        """The results of all jobs, each with its key, in the order in which they end.

        Raises:
            KeyboardInterrupt: the run is to stop.
        """
        waiting = deque(Task(key, job) for key, job in jobs.items())
        left = len(waiting)
        try:
            while left:
                self._dispatch(waiting)
                found = self._receive(waiting) if self.running else self._refuse(waiting)
                if found is None:
                    continue
                task, reply = found
                try:
                    request = task.job.send(reply)
                except StopIteration as end:
                    left -= 1
                    yield task.key, end.value
                else:
                    waiting.appendleft(Task(task.key, task.job, request, task.worker))
        finally:
            for sent in self.running:
                sent.task.answered = True

    def close(self) -> None:
        """End all workers."""
        with ThreadPoolExecutor(32) as threads:
            list(threads.map(lambda worker: worker.close(), self.workers))
        self.workers, self.idle = {}, {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _dispatch(self, waiting: deque[Task]) -> None:
        """Give every idle worker a request, where there is one for it."""
        held = list[Task]()
        while waiting and self.idle:
            task = waiting.popleft()
            worker = self._fitting(task)
            if worker is None:
                held.append(task)
            else:
                self._send(task, worker)
        waiting.extendleft(reversed(held))
        if self.idle:
            for task, worker in zip(list(self._late()), list(self.idle), strict=False):
                self.counts["copies"] += 1
                self._send(task, worker)

    def _fitting(self, task: Task) -> PoolWorker | None:
        """An idle worker: that of the job, else one that was not lost at it, if there is any."""
        if task.worker in self.idle:
            return task.worker
        free = (w for w in self.idle if w not in task.lost)
        others = any(w not in task.lost for w in self.workers)
        return next(free, None if others else next(iter(self.idle)))

    def _late(self) -> Iterator[Task]:
        """The requests that take so long that another worker is to be asked, oldest first.

        A third one is asked where the second takes as long.
        """
        limits = {kind: LATE * known[len(known) // 2] for kind, known in self._durations.items()}
        least, now = min(limits.values(), default=math.inf), self.inbox.now()
        for sent in self.running:
            took, task = now - sent.started, sent.task
            if took <= least:
                return
            late = took > limits.get(sent.kind, math.inf) and task.newest is sent
            if late and not task.answered and task.asked < ATTEMPTS + len(task.lost):
                yield task

    def _send(self, task: Task, worker: PoolWorker) -> None:
        del self.idle[worker]
        request = task.begun()
        kind = request.size, worker is task.worker
        sent = Sent(task, worker, kind, self.inbox.now())
        self.running[sent] = None
        task.newest = sent
        task.copies += 1
        task.asked += 1
        self.counts["sent"] += 1
        worker.send(request, lambda answer: self.inbox.put((sent, answer)))

    def _receive(self, waiting: deque[Task]) -> tuple[Task, Reply] | None:
        """Wait a little; the reply that counts, if one came."""
        found = self.inbox.get(POLL)
        if self.stopped():
            raise KeyboardInterrupt
        sent, answer = found or self._overdue()
        if sent is None or sent not in self.running:
            return None
        del self.running[sent]
        task = sent.task
        task.copies -= 1
        self._free(sent, answer)
        unsettled = isinstance(answer, Lost) or answer.outcome == "timeout"
        if task.answered or (unsettled and task.copies):
            self.counts["dropped"] += 1
            if task.newest is sent:
                task.newest = next((s for s in self.running if s.task is task), None)
            return None
        if isinstance(answer, Lost):
            task.lost.append(sent.worker)
            if len(task.lost) < ATTEMPTS:
                waiting.appendleft(task)
                return None
            answer = Failure("killed", answer.why)
        task.answered, task.worker = True, sent.worker
        return task, answer

    def _refuse(self, waiting: deque[Task]) -> tuple[Task, Reply]:
        """What stands for the reply of the next request where no worker is left."""
        task = waiting.popleft()
        task.begun()
        return task, Failure("killed", "no worker is left")

    def _overdue(self) -> tuple[Sent | None, Answer]:
        """A request that should have ended by itself long ago, and what stands for its reply."""
        sent, limit = next(iter(self.running)), self.timeout + GRACE
        if self.inbox.now() - sent.started <= limit:
            return None, Lost("")
        sent.worker.restart()
        return sent, Failure("timeout", f"no answer in {limit:.0f} s")

    def _free(self, sent: Sent, answer: Answer) -> None:
        """Let the worker of a request have the next one, unless it was lost again and again."""
        worker = sent.worker
        if isinstance(answer, Lost):
            self.counts["lost"] += 1
            self._losses[worker] += 1
            if self._losses[worker] == ATTEMPTS:
                self.say(f"worker {worker.name} is lost: {answer.why}")
                del self.workers[worker]
                worker.close()
                return
            worker.restart()
        else:
            self._losses.pop(worker, None)
            if answer.outcome == "ok":
                known = self._durations.setdefault(sent.kind, [])
                bisect.insort(known, self.inbox.now() - sent.started)
        self.idle[worker] = None
