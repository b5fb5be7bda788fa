"""How a tuner's coordinator scales: `python benchmarks/scale.py [OUT] [--wall]`.

The pool's scheduler, its requests and the database are those of a run; the workers and the clock
are simulated, with durations from committed runs on the built-in task. The clock goes on by what
the coordinator itself takes (CPU time, with ``--wall`` that of the wall) beside what workers would
take, so that a coordinator that is too slow leaves workers idle. Some workers are slow or lost for
good, some requests hang, crash or are killed. Every measurement must be stored exactly once.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnpass import Plan, environment
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import (
    Failure,
    Inbox,
    Lost,
    PackedRequest,
    Pool,
    Protocol,
    Reply,
    Times,
)
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Inspection, Settings, inspect_task
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import Session

RESULT = Path(__file__).parent / "results" / "scale_cpu.json"
WORKERS = (1, 10, 100, 1000)
EACH, LEAST = 4, 200
"""Measurements per worker, and in all."""

SEEDS = 3

SLOW, TIMES_SLOWER = 0.05, 5.0
"""Share of the workers that are slow, and by how much."""

LOST = 0.02
"""Share of the workers that are gone for good within their first ten requests."""

FAULTS = {"hangs": 0.002, "killed": 0.01, "crashed": 0.005}
"""Share of the requests that end so; one that hangs ends by the timeout."""

TIMEOUT = 900.0

WARMUP = 3
"""Calls before the first round."""


class Clock(Inbox):
    """Simulated time, which goes on to the next answer, and by the coordinator's own work.

    Attributes:
        time: simulated seconds. work: of them, those that the coordinator took.
    """

    def __init__(self, watch: Callable[[], float] = time.thread_time) -> None:
        super().__init__()
        self.time = self.work = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._watch, self._since = watch, watch()

    def now(self) -> float:
        return self.time + self._watch() - self._since

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        """Let something happen so many seconds from now."""
        heapq.heappush(self._events, (self.now() + seconds, next(self._order), happens))

    def get(self, seconds: float) -> Any:
        self.worked()
        until = self.time + seconds
        while self.queue.empty() and self._events and self._events[0][0] <= until:
            when, _, happens = heapq.heappop(self._events)
            self.time = max(self.time, when)
            happens()
        if self.queue.empty():
            self.time = until
        self._since = self._watch()
        return None if self.queue.empty() else self.queue.get()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Inside, the work is not the coordinator's."""
        self.worked()
        yield
        self._since = self._watch()

    def worked(self) -> None:
        """Count what the coordinator took until now."""
        now = self._watch()
        self.time += now - self._since
        self.work += now - self._since
        self._since = now

    def begin(self) -> None:
        """Forget what was counted."""
        self.time = self.work = 0.0
        self._since = self._watch()


class SimulatedWorker:
    """A worker whose ``answers`` gives the seconds that a request takes, and what then comes."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        answers: Callable[[PackedRequest], tuple[float, Reply | Lost]],
        device: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.clock, self.answers = name, clock, answers
        self.device = device or {}
        self.restarts = self.asked = 0
        self.closed = False

    def send(self, request: PackedRequest, done: Callable[[Reply | Lost], None]) -> None:
        with self.clock.elsewhere():
            self.asked += 1
            seconds, answer = self.answers(request)
            if seconds < math.inf:
                self.clock.after(seconds, lambda: done(answer))

    def restart(self) -> None:
        self.restarts += 1

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Costs:
    """Seconds: of compiling a plan, as often as it was recorded, and of a round of each form."""

    compiling: list[float]
    timing: list[float]


def recorded() -> Costs:
    """The durations of committed runs: `pass_cost.py` compiled the model, `tune.py` timed it."""
    cost, found = (
        json.loads(RESULT.with_name(f"{name}_cpu.json").read_text())
        for name in ("pass_cost", "digits")
    )
    facts, sites = found["facts"], len(found["front"][0]["forms"])
    base = facts["baseline_ms"]
    forms = [base - sites * saved for saved in facts["saving_ms_per_site"].values()]
    return Costs(
        [x["backend"] for x in cost["cold"]],
        [(2 * base + max(ms, 0.1 * base)) / 1e3 for ms in forms],
    )


class Fate:
    """What becomes of the requests of one simulation, by recorded durations."""

    def __init__(self, costs: Costs, hashes: dict[Any, str], seed: int) -> None:
        self.costs, self.hashes, self.pick = costs, hashes, random.Random(seed)

    def worker(self, name: str, clock: Clock) -> SimulatedWorker:
        """A worker that may be slow, or be lost after some requests."""
        pick, pace, left, compiled = self.pick, 1.0, math.inf, set[str]()
        if name != "0":  # alone it shows how long all takes
            pace = TIMES_SLOWER if pick.random() < SLOW else pace
            left = pick.randrange(10) if pick.random() < LOST else left

        def answers(request: PackedRequest) -> tuple[float, Reply | Lost]:
            # a worker keeps what it compiled: the baseline, and a plan whose times are taken on
            new = {self.hashes[p] for p in request.plans or () if p is not None} - compiled
            compiled.update(new)
            rounds = request.protocol.rounds + WARMUP
            seconds = pace * (
                sum(pick.choice(self.costs.compiling) for _ in new)
                + rounds * pick.choice(self.costs.timing)
            )
            if made.asked > left:
                return seconds * pick.random(), Lost("the node is gone")
            chance = pick.random()
            for outcome, share in FAULTS.items():
                chance -= share
                if chance < 0:
                    if outcome == "hangs":
                        return TIMEOUT, Failure("timeout", f"no answer in {TIMEOUT:.0f} s")
                    return seconds * pick.random(), Failure(outcome, "as it happens")
            return seconds, self._times(request)

        made = SimulatedWorker(name, clock, answers)
        return made

    def _times(self, request: PackedRequest) -> Times:
        plans = request.plans or ()
        rounds = request.protocol.rounds
        times = [[20 * math.exp(self.pick.gauss(0, 0.01)) for _ in range(rounds)] for _ in plans]
        return Times(times, ["" if p is None else self.hashes[p] for p in plans])


def simulated(
    inspection: Inspection,
    plans: Sequence[Plan],
    workers: int,
    costs: Costs,
    seed: int,
    watch: Callable[[], float] = time.thread_time,
) -> dict[str, Any]:
    """The measurements of all plans by so many workers."""
    exact = Plan(assign(inspection.sites, "softmax")[0])
    wanted = {p.hash: [exact, exact, p] for p in plans}
    packed = {PackedRequest.of([p], Protocol(1)).plans[0]: p.hash for p in (exact, *plans)}
    clock, fate = Clock(watch), Fate(costs, packed, seed)
    made = [fate.worker(str(i), clock) for i in range(workers)]
    kept = Counter[str]()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        keep = session.keep

        def counted(kind: str, subject: str, *given: Any, **more: Any) -> None:
            kept[subject] += 1
            keep(kind, subject, *given, **more)

        session.keep = counted  # type: ignore[method-assign]
        pool = Pool(made, timeout=TIMEOUT, inbox=clock)
        clock.begin()
        Latencies(inspection, session, pool).take_ahead(wanted)
        clock.worked()
        outcomes = Counter(
            row["outcome"]
            for row in store.db.query("SELECT outcome FROM measurements WHERE kind = 'latency'")
        )
    return {
        "workers": workers,
        "measurements": len(wanted),
        "seed": seed,
        "seconds": clock.time,
        "per_second": len(wanted) / clock.time,
        "coordinator_seconds": clock.work,
        "coordinator_share": clock.work / clock.time,
        "workers_left": len(pool.workers),
        "sent": pool.counts["sent"],
        "copies": pool.counts["copies"],
        "dropped": pool.counts["dropped"],
        "lost": pool.counts["lost"],
        "outcomes": dict(outcomes),
        "missing": len(wanted) - len(kept),
        "doubled": sum(n - 1 for n in kept.values()),
        "rows": sum(outcomes.values()),
    }


def many_plans(library: PieceLibrary, inspection: Inspection, count: int) -> list[Plan]:
    """So many different plans."""
    pick, made = random.Random(0), dict[str, Plan]()
    while len(made) < count:
        given = {s: pick.choice(["softmax", *cs]) for s, cs in inspection.legal.items()}
        plan = library.plan({s: c for s, c in given.items() if c != "softmax"})
        made[plan.hash] = plan
    return list(made.values())


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per number of workers the medians over the seeds, and their range."""
    found = []
    for workers in WORKERS:
        own = [r for r in rows if r["workers"] == workers]
        told: dict[str, Any] = {"workers": workers, "measurements": own[0]["measurements"]}
        for name in ("seconds", "efficiency", "coordinator_share"):
            values = [r[name] for r in own]
            told |= {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}
        found.append(told)
    return found


def main() -> None:
    """Simulate, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default=str(RESULT))
    parser.add_argument("--wall", action="store_true")
    given = parser.parse_args()
    watch = time.perf_counter if given.wall else time.thread_time
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        inspection = inspect_task(Settings("digits"), store)
    library = PieceLibrary(inspection)
    for choice in inspection.settings.forms:  # parameters of the size that they have in a run
        library.keep(choice, library.everywhere(choice))
    plans = many_plans(library, inspection, max(LEAST, EACH * max(WORKERS)))
    costs, rows = recorded(), list[dict[str, Any]]()
    for workers, seed in itertools.product(reversed(WORKERS), range(SEEDS)):
        some = plans[: max(LEAST, EACH * workers)]
        rows.append(simulated(inspection, some, workers, costs, seed, watch))
        print(rows[-1], flush=True)
    alone = statistics.median(r["per_second"] for r in rows if r["workers"] == 1)
    for row in rows:
        row["efficiency"] = row["per_second"] / alone / row["workers"]
    value = {
        "command": "python benchmarks/scale.py" + (" --wall" if given.wall else ""),
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "coordinator_seconds_are": "wall" if given.wall else "CPU",
        "costs": vars(costs),
        "timeout": TIMEOUT,
        "slow": [SLOW, TIMES_SLOWER],
        "lost": LOST,
        "faults": FAULTS,
        "table": table(rows),
        "rows": rows,
    }
    Path(given.out).write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
