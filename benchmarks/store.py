"""The database at size: `python benchmarks/store.py [OUT] [--rows N] [--layers N] [--width N]`.

Times of the queries that a run and `attnpass results` make, among many rows; and a plan with a
full delta for each of four projections per layer stored and loaded again: seconds, and the memory
that this takes (sampled, without mapped files). The default is a plan that changes eight billion
parameters: 120 layers of width 4096, 30 GiB of float32 deltas, which go to --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import forked
from many_rows import context, fill

from attnpass import environment
from attnpass.plan import Delta, Entry, Plan
from attnpass.store import Store, compare, find_garbage, key_of, measurements

HERE = Path(__file__).parent


def milliseconds(act: Callable[[], object], times: int = 20) -> float:
    """The median of some calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(found)


def rows(folder: Path, count: int) -> dict[str, Any]:
    """The times of queries among so many measurements, in milliseconds."""
    with Store(folder / "rows.db") as store:
        began = time.perf_counter()
        fill(store, count, 500)
        found: dict[str, Any] = {"count": count, "written_s": time.perf_counter() - began}
        subject, here = f"{5:016x}", context(20)
        queries: dict[str, Callable[[], object]] = {
            "get, a hit": lambda: store.get("accuracy", subject, here),
            "get, a miss with a reason": lambda: store.get("accuracy", subject, {}),
            "put": lambda: store.put("accuracy", "new", {}, {"x": 1}),
            "runs, the 50 newest": lambda: store.runs(50),
            "measurements, the 50 newest": lambda: measurements(store, 50),
            "measurements of a task": lambda: measurements(store, 50, task="task 3"),
            "why": lambda: compare(store, key_of("accuracy", subject, here)),
        }
        found["ms"] = {name: milliseconds(act) for name, act in queries.items()}
        found["ms"]["gc --dry-run"] = milliseconds(lambda: find_garbage(store, {"torch": "3"}), 1)
    return found


def plan_of(layers: int, width: int) -> Plan:
    """A plan whose deltas are one number each, another in each, so that they take no memory."""
    names = [f"layers.{i}.attn" for i in range(layers)]
    plan = Plan({name: Entry("hydra", {}, {}, "w") for name in names})
    for i, name in enumerate(names):
        plan.values[name] = {"gain": torch.nn.Parameter(torch.ones(32))}
        plan.deltas[name] = {}
        for j, weight in enumerate("qkvo"):
            number = torch.full((1, 1), (4 * i + j) / 1024)
            delta = Delta(torch.Size([1, 1]))
            delta.full = torch.nn.Parameter(number.expand(width, width))
            plan.deltas[name][f"{name}.{weight}"] = delta
    return plan


def plan(folder: Path, layers: int, width: int) -> dict[str, Any]:
    """What storing and loading a large plan takes."""
    path = folder / "plan.db"

    def save() -> None:
        with Store(path) as store:
            store.save_plan(plan_of(layers, width))

    def load() -> None:
        with Store(path, read=True) as store:
            (row,) = store.db.query("SELECT hash FROM plans")
            found = store.plan(row["hash"])
        assert found is not None and len(found.deltas) == layers

    def nothing() -> None:
        pass

    before = forked.run(nothing, 60.0).mib
    found: dict[str, Any] = {"parameters": 4 * layers * width**2}
    for what, act in (("stored", save), ("stored again", save), ("loaded", load)):
        began = time.perf_counter()
        ended = forked.run(act, 3600.0)
        assert ended.code == 0, ended.err
        found[what] = {"s": time.perf_counter() - began, "mib": ended.mib - before}
        print(what, found[what], flush=True)
    files = list(path.with_name("plan.db.tensors").iterdir())
    found["files"] = len(files)
    found["gib"] = sum(f.stat().st_size for f in files) / 2**30
    found["database_kib"] = path.stat().st_size / 1024
    return found


def main() -> None:
    """Measure, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default=str(HERE / "results" / "store_cpu.json"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=given.folder))
    try:
        value = {
            "command": " ".join(["python benchmarks/store.py", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "device": environment.device(),
            "versions": environment.versions(),
            "load": os.getloadavg(),
            "rows": rows(folder, given.rows),
            "plan": plan(folder, given.layers, given.width),
        }
    finally:
        shutil.rmtree(folder)
    Path(given.out).write_text(json.dumps(value, indent=1) + "\n")
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
