"""Processes killed and stopped at random points: nothing committed is lost, a rerun ends the same.

    python kills.py --points 300 --write     all kinds of points; prints a summary and keeps it

A point is a child of this process, which has imported torch and captured the tiny task: a run with
recorded times, or a model being compiled. Its coordinator, its worker, or itself gets a signal at
a random moment. Then the database must be whole, with every row that was committed, and the same
run, undisturbed, must end with the answer of a run that was never disturbed.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import platform
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import forked
import torch
from forked import Ended
from tiny_tasks import tiny
from tuning import QUIET, settings

from attnpass import Plan
from attnpass.store import Store
from attnpass.tuner.cli.command import stopped_by_signals
from attnpass.tuner.measure import Times, worker
from attnpass.tuner.measure.exchange import CeilingRequest, Request
from attnpass.tuner.search import execute, inspect_task

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "kills_cpu.json"
KINDS = {
    "coordinator": [signal.SIGKILL],
    "worker": [signal.SIGKILL],
    "compiling": [signal.SIGKILL],
    "stopped": [signal.SIGTERM, signal.SIGHUP, signal.SIGINT],
    "stopped twice": [signal.SIGINT, signal.SIGTERM],
}
"""Kind of point -> the signals that it may get."""

LIMIT = 120.0
"""Seconds after which a child counts as hanging."""


class RecordedBench:
    """The worker's side with times that are always the same, and a moment to be killed in."""

    def answer(self, request: Request) -> Times:
        """Times that make each plan faster than the one before."""
        time.sleep(0.05)
        if isinstance(request, CeilingRequest):
            return Times([[x] * request.protocol.rounds for x in (3.0, 3.0, 3.0, 1.0, 0.5)], [])
        hashes = ["" if p is None else Plan.load(p).hash for p in request.plans]
        times = [
            [3.0 if h == "" else 1.0 + int(h[:2], 16) / 256] * request.protocol.rounds
            for h in hashes
        ]
        return Times(times, hashes)


class Forking:
    """A context of ``multiprocessing``: processes have torch already, else are as spawned ones."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def Pipe(self) -> Any:
        self.ends = self.context.Pipe()
        return self.ends

    def Process(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> Any:
        mine = self.ends[0]

        def serve(*given: Any) -> None:
            mine.close()  # a process that is spawned has the other end alone
            target(*given)

        return self.context.Process(target=serve, args=args, daemon=daemon)


class Points:
    """What all points share: the captured task, and the answer of an undisturbed run."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        worker._bench = lambda path, given: RecordedBench()
        forking = Forking(multiprocessing.get_context("fork"))
        worker.multiprocessing.get_context = lambda name: forking
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.db"
            with Store(path) as store:
                self.inspection = inspect_task(settings(forms=("hydra",), trials=5), store)
                # what it compiles and imports, the children have
                execute(self.inspection, store, QUIET)
            self.compiled(path)()
            ended = forked.run(self.search(Path(folder) / "b.db"), LIMIT)
            self.answer = answer(ended)
            self.seconds = {kind: self._timed(Path(folder) / f"{kind}.db", kind) for kind in KINDS}
        assert self.answer and self.answer["best"], ended.err

    def act(self, kind: str, path: Path) -> Callable[[], None]:
        """What a child of a kind of point does."""
        return self.compiled(path) if kind == "compiling" else self.search(path)

    def _timed(self, path: Path, kind: str) -> float:
        began = time.monotonic()
        forked.run(self.act(kind, path), LIMIT)
        return time.monotonic() - began

    def search(self, path: Path) -> Callable[[], None]:
        """A run on a database; prints its result."""

        def act() -> None:
            try:
                with stopped_by_signals(), Store(path) as store:
                    result = execute(self.inspection, store, QUIET)
            except KeyboardInterrupt:  # as the command does
                sys.exit(1)
            print(json.dumps(result.as_dict(), default=str), flush=True)
            sys.exit(0 if result.status == "done" else 1)

        return act

    def compiled(self, path: Path) -> Callable[[], None]:
        """A model compiled under the pinned plan of a database."""

        def act() -> None:
            task = tiny()
            fast = torch.compile(
                task.model, backend="attnpass", options={"inner": "eager", "db": str(path)}
            )
            with torch.no_grad():
                fast(*task.example)

        return act


def answer(ended: Ended) -> dict[str, Any] | None:
    """The part of a run's result that must be the same every time; None where there is none."""
    try:
        found = json.loads(ended.out.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    found.pop("created")
    return found


def rows(path: Path) -> dict[tuple[str, str], str]:
    """All committed rows by table and key, those of runs without their contents.

    Raises:
        AssertionError: the database is not whole.
    """
    if not path.exists():
        return {}
    connection = sqlite3.connect(path)
    try:
        (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert whole == "ok", whole
        tables = {r[0] for r in connection.execute("SELECT name FROM sqlite_master")}
        found: dict[tuple[str, str], str] = {}
        for table, key, value in (
            ("measurements", "key", "created || value"),
            ("plans", "hash", "hash"),
            ("pins", "structure", "plan"),
            ("runs", "id", "created"),
        ):
            if table in tables:
                for k, v in connection.execute(f"SELECT {key}, {value} FROM {table}"):
                    found[table, k] = v
        return found
    finally:
        connection.close()


def children(process: int) -> list[int]:
    """The children of a process."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(x) for x in text.split()]


def attempt(points: Points, kind: str, pick: random.Random) -> tuple[str, bool]:
    """What is wrong after one point, empty where nothing is; and whether the signal arrived."""
    number = pick.choice(KINDS[kind])
    with tempfile.TemporaryDirectory() as name:
        path, hit = Path(name) / "a.db", []
        if kind == "compiling":
            task = tiny()
            with Store(path) as store:
                store.pin(Plan.create(task.model, *task.example, form="hydra"))
        before = rows(path)
        moments = [pick.uniform(0, points.seconds[kind])]
        if kind == "stopped twice":
            moments.append(moments[0] + pick.uniform(0, 0.05))

        def strike(child: int) -> None:
            targets = children(child) if kind == "worker" else [child]
            for target in targets[:1]:
                os.kill(target, number)
                hit.append(target)

        ended = forked.run(points.act(kind, path), LIMIT, [(moment, strike) for moment in moments])
        problem = fault(points, kind, path, before, ended, bool(hit))
    return problem, bool(hit)


def fault(
    points: Points,
    kind: str,
    path: Path,
    before: dict[tuple[str, str], str],
    ended: Ended,
    hit: bool,
) -> str:
    """What is wrong after a point that ended so."""
    if ended.late:
        return "no end"
    if "Traceback" in ended.err or (ended.code not in (0, -signal.SIGKILL) and "worker" in kind):
        return f"exit code {ended.code}: {ended.err[-400:]}"
    kept = rows(path)
    if any(kept.get(k) != v for k, v in before.items()):
        return "a row is gone"
    if kind == "compiling":
        return "" if Store(path, read=True).pinned() else "the pin is gone"
    if kind == "worker" and answer(ended) != points.answer:
        return f"the run did not go on as ever: {ended.code} {ended.err[-300:]}"
    if "stopped" in kind and path.exists():
        with Store(path, read=True) as store:
            run, found = store.run("last"), answer(ended) or {"status": ""}
        status = run["status"] if run else "none"
        # it may be over, and not have said so, when the signal comes
        if status == "running" or found["status"] not in ("", status):
            return f"the run is {status} and says {found['status']}"
    again = forked.run(points.search(path), LIMIT)
    if answer(again) != points.answer:
        return f"the rerun ends otherwise: {again.code} {again.err[-300:]}"
    now = rows(path)
    if changed := [k for k, v in kept.items() if now.get(k) != v]:
        return f"the rerun lost or changed {changed}"
    left = [p.name for p in path.parent.iterdir() if not p.name.startswith("a.db")]
    left += [p.name for p in path.parent.glob("*.plans")]
    return f"left behind: {', '.join(left)}" if left else ""


def main() -> int:
    """Try the points and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    points, pick, began = Points(), random.Random(given.seed), time.monotonic()
    tally: collections.Counter[str] = collections.Counter()
    hits: collections.Counter[str] = collections.Counter()
    wrong = []
    for i in range(given.points):
        kind = list(KINDS)[i % len(KINDS)]
        problem, hit = attempt(points, kind, pick)
        tally[kind] += 1
        hits[kind] += hit
        if problem:
            wrong.append((kind, problem))
            print(f"point {i}, {kind}: {problem}", flush=True)
    result = {
        "command": f"python kills.py --points {given.points} --seed {given.seed} --write",
        "date": time.strftime("%Y-%m-%d"),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "points": given.points,
        "tried": dict(tally),
        "signal arrived": dict(hits),
        "wrong": len(wrong),
        "run_seconds": round(points.seconds["coordinator"], 2),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(result))
    if given.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
