"""Help for the tuner's tests: tiny settings, the command line, a database's rows, a worker."""

from __future__ import annotations

import math
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import house
from click.testing import CliRunner

from attnpass import Plan
from attnpass.store import Store
from attnpass.tuner.cli import main
from attnpass.tuner.measure import Failure, Protocol, Reply, Times
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Inspection, Settings, inspect_task
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.candidates import Candidates
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import Savings

TASKS = str(house.ROOT / "tests" / "tiny_tasks.py")
TINY = f"{TASKS}:tiny"
DISTIL = {"recover": "distil", "recover_budget": 12.0, "forms": ("hydra",)}
QUIET = ProgressPrinter(quiet=True)


def settings(**more) -> Settings:
    given = {
        "inner": "eager",
        "tiles": 0,
        "trials": 4,
        "max_drop": 0.3,
        "forms": ("hydra", "skipat r=0"),
    }
    return Settings(**{"task": TINY, **given, **more})


def opened(store: Store, **more) -> tuple[Inspection, Session]:
    """An inspected task and the session of its run."""
    asked = settings(**more)
    found = inspect_task(asked, store)
    return found, Session(found.run, store, QUIET, refresh=asked.refresh)


def pool(store: Store, **more) -> Candidates:
    """Candidates before any is tried: the baseline taken, a made-up latency of 1 ms."""
    inspection, session = opened(store, **more)
    baseline, library = measure_baseline(inspection, session), PieceLibrary(inspection)
    return Candidates(inspection, session, baseline, library, 1.0, Savings({}))


def run(
    *arguments: str, db: Path | None = None, apart: bool = False
) -> subprocess.CompletedProcess:
    """What a command does; ``apart`` in a process of its own, as users call it."""
    env = {"ATTNPASS_DB": str(db)} if db else {}
    if apart:
        command = [sys.executable, "-m", "attnpass.tuner.cli", *arguments]
        env = {**os.environ, **env}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    done = CliRunner().invoke(main, arguments, env=env, catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def rows(path: Path) -> dict[str, str]:
    """When each measurement of a database that stays was committed, by its key."""
    connection = sqlite3.connect(path)
    asked = "SELECT key, created || rowid FROM measurements WHERE outcome != 'unreliable'"
    found = connection.execute(asked).fetchall()
    connection.close()
    return dict(found)


def count(path: Path) -> int:
    """How many measurements a database has; 0 where there is none yet."""
    try:
        return len(rows(path))
    except sqlite3.OperationalError:
        return 0


class Replies:
    """A worker that gives these replies, one after the other; None are times for all plans."""

    def __init__(self, *replies: Reply | None) -> None:
        self.replies, self.asked = list(replies), list[Protocol]()

    def ceiling(self, protocol: Protocol) -> Reply:
        self.asked.append(protocol)
        return self.replies.pop(0)

    def measure(self, files: list, protocol: Protocol) -> Reply:
        self.asked.append(protocol)
        reply = self.replies.pop(0)
        hashes = ["" if f is None else Plan.load(f).hash for f in files]
        # the unchanged model, however often, takes as long
        steps = [i if file else 0 for i, file in enumerate(files)]
        return reply or Times([[1.0 + i] * protocol.rounds for i in steps], hashes)


def series(rounds: int, ms: float, spread: float, seed: int) -> list[float]:
    """Times around ``ms`` whose logarithms have this standard deviation."""
    pick = random.Random(seed)
    return [ms * math.exp(pick.gauss(0, spread)) for _ in range(rounds)]


def failed(outcome: str) -> Failure:
    return Failure(outcome, "no luck")
