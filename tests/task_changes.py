"""Changes to a tiny task, each measured before and after, with and without what was stored.

    python task_changes.py            every change; prints what was served and what caught it
    python task_changes.py --write    and keeps the summary in benchmarks/results

The oracle is the task after the change, measured without a cache. Figures that are served and
differ from it are a wrong hit. Where the change has no effect, measuring anew is a needless miss.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from changes import CHANGES
from changes.change import Change

from attnpass import environment
from attnpass.store import Store
from attnpass.task import load_task
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Settings, inspect_task
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.candidates import Candidates
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.run import believed
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import Savings

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "task_changes_cpu.json"

COMMANDS = (
    *(("source", "function"), ("source", "comment"), ("file", "open"), ("data", "calibration")),
    *(("variable", "os.environ"), ("variable", "name made at run time")),
)
"""Changes that are measured through the command line, too."""

BAD = ("wrong hit", "wrong run", "error")
"""Verdicts that are failures."""


class Lines(ProgressPrinter):
    """Keeps the lines that a run says."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: Any, style: str | None = None) -> None:
        self.lines.append(str(text))


def figures(task: str, db: str) -> dict[str, Any]:
    """Scores of the unchanged model and of a calibrated plan, as a run of the tuner takes them."""
    asked = Settings(task, inner="eager", trials=1, forms=("hydra",))
    lines = Lines()
    with Store(db) as store:
        before = {row["key"] for row in store.db.query("SELECT key FROM measurements")}
        inspection = inspect_task(asked, store)
        session = Session(inspection.run, store, lines)

        def stages():
            baseline, library = measure_baseline(inspection, session), PieceLibrary(inspection)
            candidates = Candidates(inspection, session, baseline, library, 1.0, Savings({}))
            library.calibrate(session)
            found = candidates.of({s.name: "hydra" for s in inspection.sites})
            yield {
                "run": inspection.run,
                "random": baseline.random,
                "scores": [baseline.scored.tolist(), found.scores.tolist()],
            }

        *_, found = believed(session, stages)
        after = {row["key"] for row in store.db.query("SELECT key FROM measurements")}
        known = store.get("accuracy", "baseline scores", inspection.context)[0] or {}
    return {
        **found,
        "kept": sorted(after - before),
        "mark": known.get("mark"),
        "said": lines.lines,
    }


def warm() -> None:
    """Measure once here: what is imported late is then there in every fork."""
    with tempfile.TemporaryDirectory() as place:
        change = Change("", "")
        change.write(Path(place), False)
        os.environ.update(change.variables(False))
        figures(f"{place}/mine.py:task", f"{place}/a.db")


def forked(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a copy of this process, which then ends."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # threads of torch, which are idle, do not matter
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with open(writer, "w") as pipe:
            try:
                json.dump(work(), pipe)
            except BaseException:
                json.dump({"error": traceback.format_exc()}, pipe)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


def measured(change: Change, folder: Path, after: bool, db: str) -> dict[str, Any]:
    """The figures of the task before or after a change, in a process of its own."""
    change.write(folder, after)
    for cache in folder.rglob("__pycache__"):  # a second is too long for the time of a change
        for compiled in cache.iterdir():
            compiled.unlink()

    def work() -> dict[str, Any]:
        os.chdir(folder)
        os.environ.update(change.variables(after))
        exec(change.begin[after])
        return figures("mine.py:task", db)

    if not change.apart:
        return forked(work)
    found = subprocess.run(
        [sys.executable, __file__, "--one", str(folder / "mine.py"), db],
        env={**os.environ, **change.variables(after)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return json.loads(found.stdout) if found.returncode == 0 else {"error": found.stderr}


def verdict(change: Change, twice: bool = True) -> dict[str, Any]:
    """What became of one change; ``twice``: and of the task as it was, measured again."""
    row = {"kind": change.kind, "name": change.name}
    with tempfile.TemporaryDirectory() as place:
        folder, db = Path(place) / "task", str(Path(place) / "a.db")
        folder.mkdir()
        before = measured(change, folder, False, db)
        again = measured(change, folder, False, db) if twice else {"kept": []}
        served = measured(change, folder, True, db)
        truth = measured(change, folder, True, str(Path(place) / "other.db"))
    errors = [x["error"] for x in (before, again, served, truth) if "error" in x]
    if errors:
        return {**row, "verdict": "error", "why": errors[0].strip().split("\n")[-1]}
    row["unchanged task"] = "measured anew" if again["kept"] else "served"
    differs = before["scores"] != truth["scores"]
    if served["scores"] != truth["scores"]:
        row["verdict"] = "wrong hit"
    elif change.calibrates and served["run"] == before["run"]:
        row["verdict"] = "wrong run"
    elif differs:
        row["verdict"] = "caught"
    else:
        row["verdict"] = "needless miss" if served["kept"] else "hit"
    reasons = [x for x in served["said"] if "unchanged model" not in x]
    return {**row, "random": truth["random"], "why": "; ".join(reasons)}


def unstable() -> list[str]:
    """Changes before which the contents of the task have other digests in another process."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for seed in ("1", "2"):
            done = subprocess.run(
                [sys.executable, __file__, "--contents", place],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout))
    return [name for name in found[0] if found[0][name] != found[1][name]]


def contents(place: Path) -> dict[str, Any]:
    """The digests of every task before its change, each in a fork."""
    found = {}
    for i, change in enumerate(CHANGES):
        folder = place / str(i) / "task"
        folder.mkdir(parents=True, exist_ok=True)
        change.write(folder, False)

        def work(change: Change = change, folder: Path = folder) -> Any:
            os.chdir(folder)
            os.environ.update(change.variables(False))
            exec(change.begin[False])
            return dict(load_task("mine.py:task").contents().digests)

        found[f"{change.kind} {change.name}"] = forked(work)
    return found


def commands() -> list[dict[str, Any]]:
    """Some changes through the command ``tune``, against the same without a cache."""
    return [command(c) for c in CHANGES if (c.kind, c.name) in COMMANDS]


def command(change: Change, oracle: bool = True) -> dict[str, Any]:
    """The verdict on one change where the command line measures, beside the scores.

    Without ``oracle`` the scores after it need only be others than before.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "task"
        folder.mkdir()

        def tuned(after: bool, name: str) -> dict[str, Any]:
            change.write(folder, after)
            asked = [
                "tune",
                "mine.py:task",
                "--inner",
                "eager",
                "--trials",
                "1",
                "--forms",
                "hydra",
            ]
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "attnpass.tuner.cli",
                    *asked,
                    "--json",
                    "--db",
                    f"../{name}",
                ],
                env={**os.environ, **change.variables(after), "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=folder,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return {**json.loads(done.stdout), "said": done.stderr}

        before, served = tuned(False, "a.db"), tuned(True, "a.db")
        truth = tuned(True, "b.db") if oracle else served
    scores = [x["facts"]["baseline_score"] for x in (before, served, truth)]
    runs = before["run"] != served["run"]
    wrong = scores[1] != scores[2] or (change.calibrates and not runs)
    said = [
        x for x in served["said"].splitlines() if "measur" in x and "again" in x or "anew" in x
    ]
    return {
        "name": f"{change.kind}: {change.name}",
        "verdict": "wrong hit" if wrong else "right",
        "before, served, truth": scores,
        "another run": runs,
        "why": "; ".join(said),
    }


def main() -> int:
    """Apply every change in two processes and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="", help="changes whose kind or name holds this")
    parser.add_argument("--one", nargs=2, help="print the figures of a task with a database")
    parser.add_argument("--contents", help="print the digests of all tasks, made in this folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(figures(f"{given.one[0]}:task", given.one[1])))
        return 0
    if given.contents:
        print(json.dumps(contents(Path(given.contents))))
        return 0
    began = time.perf_counter()
    warm()
    chosen = [c for c in CHANGES if given.only in f"{c.kind} {c.name}"]
    rows = []
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(verdict, chosen):
            rows.append(row)
            print(*(row[k] for k in ("verdict", "kind", "name", "why")), sep=" | ", flush=True)
    result = summary(rows, began)
    if given.write:  # the rest takes minutes more
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if not given.only:
        result["other digests in another process"] = unstable()
        result["through the command line"] = commands()
    result["seconds"] = round(time.perf_counter() - began)
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    if given.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    every = [*rows, *result["through the command line"]]
    return int(any(r["verdict"] in BAD for r in every))


def summary(rows: list[dict[str, Any]], began: float) -> dict[str, Any]:
    """The result as it is stored, with what the command line gave still to come."""

    def named(key: str, value: str) -> list[str]:
        return [f"{r['kind']}: {r['name']}" for r in rows if r.get(key) == value]

    return {
        "command": "python tests/task_changes.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.cpu_name(),
        "versions": environment.versions(),
        "system": platform.platform(),
        "changes": len(rows),
        "wrong hits": sum(r["verdict"] in BAD for r in rows),
        "verdicts": dict(collections.Counter(r["verdict"] for r in rows)),
        "needless misses": named("verdict", "needless miss"),
        "unchanged task measured anew": named("unchanged task", "measured anew"),
        "other digests in another process": [],
        "through the command line": [],
        "seconds": round(time.perf_counter() - began),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
