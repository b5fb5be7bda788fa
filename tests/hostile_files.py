"""Hostile plan files, databases, task modules and calls: each ends in one clear line, or well.

    python hostile_files.py --write       all of them; prints a summary and keeps it
    python hostile_files.py --every 12    a sample

Each case runs in a child of this process with a time limit. What is wrong: a hang, a traceback, an
exit code that does not fit, more than one line, a character that a terminal obeys, a file left
half written, much memory.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ATTNPASS_DB", "/none/none.db")

import forked
import torch
from hostile import calls, databases, plan_files, task_files
from hostile.case import Case, fault
from tiny_tasks import tiny

import attnpass
from attnpass.tuner import check, cli, show
from attnpass.tuner.cli import main as command

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "hostile_files_cpu.json"


def every_case() -> list[Case]:
    """All cases, each name once."""
    found = [c for room in (plan_files, databases, task_files, calls) for c in room.cases()]
    names = collections.Counter(c.name for c in found)
    return [c for i, c in enumerate(found) if names[c.name] == 1 or c not in found[:i]]


def warm() -> None:
    """Import and run all that the children share."""
    torch.set_num_threads(1)
    task = tiny()
    with torch.no_grad():
        attnpass.Capture(task.model).trace(*task.example)
    plan_files.good()
    for room in (check, cli, show):
        for name in room.__all__:
            getattr(room, name)


def attempt(case: Case) -> tuple[str, float]:
    """What is wrong with how a case ends, empty where nothing is; and its seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ended = forked.run(_action(case, folder), case.limit)
        return fault(case, ended, folder), time.monotonic() - began


def _action(case: Case, folder: Path) -> Callable[[], object]:
    def act() -> None:
        case.make(folder)
        os.chdir(folder)
        if case.run is not None:
            case.run(folder)
        else:
            command([x.replace("{}", str(folder)) for x in case.arguments])

    return act


def main() -> int:
    """Run the cases and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    warm()
    chosen = [c for c in every_case() if given.only in c.name][:: given.every]
    tally: collections.Counter[str] = collections.Counter()
    wrong, slowest, began = [], (0.0, ""), time.monotonic()
    for case in chosen:
        problem, seconds = attempt(case)
        tally[case.kind] += 1
        slowest = max(slowest, (seconds, case.name))
        if problem:
            wrong.append((case.name, problem))
            print(ascii(case.name), problem, sep="\n    ", flush=True)
    result = {
        "command": "python hostile_files.py --write",
        "date": time.strftime("%Y-%m-%d"),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cases": len(chosen),
        **tally,
        "wrong": len(wrong),
        "slowest": [round(slowest[0], 1), ascii(slowest[1])],
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(result))
    if given.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
