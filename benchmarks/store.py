"""The database at size: `python benchmarks/store.py [--rows N] [--layers N] [--width N]`.

Times of the queries that a run and `attnpass results` make, among many rows; and a plan with a
full delta for each of four projections per layer stored and loaded again: seconds, and the memory
that is used beside the tensors (sampled, without mapped files). The default has the attention of
an 8-billion-parameter model: 32 layers of width 4096, 8 GiB of deltas, which go to --folder.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import forked
from many_rows import context, fill

from attnpass.plan import Delta, Entry, Plan
from attnpass.store import Store, compare, find_garbage, key_of, measurements


def milliseconds(act: Callable[[], object], times: int = 20) -> float:
    """The median of some calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(found)


def rows(folder: Path, count: int) -> None:
    """Print the times of queries among so many measurements."""
    with Store(folder / "rows.db") as store:
        began = time.perf_counter()
        fill(store, count, 500)
        print(f"{count} measurements written in {time.perf_counter() - began:.1f} s")
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
        for name, act in queries.items():
            print(f"  {name:<28} {milliseconds(act):8.2f} ms")
        look = milliseconds(lambda: find_garbage(store, {"torch": "3"}), 1)
        print(f"  {'gc --dry-run':<28} {look:8.0f} ms")


def plan_of(layers: int, width: int) -> Plan:
    """A plan of zeros but for one number per delta, so that each is another."""
    names = [f"layers.{i}.attn" for i in range(layers)]
    plan = Plan({name: Entry("hydra", {}, {}, "w") for name in names})
    for i, name in enumerate(names):
        plan.values[name] = {"gain": torch.nn.Parameter(torch.ones(32))}
        plan.deltas[name] = {}
        for j, weight in enumerate("qkvo"):
            delta = Delta(torch.Size([width, width]))
            assert delta.full is not None
            delta.full.data[0, 0] = (4 * i + j) / 1024
            plan.deltas[name][f"{name}.{weight}"] = delta
    return plan


def plan(folder: Path, layers: int, width: int) -> None:
    """Print what storing and loading a large plan takes."""
    path, tensor = folder / "plan.db", width * width * 4 / 2**20
    own = 4 * layers * tensor
    print(f"a plan of {4 * layers} deltas of {tensor:.0f} MiB, {own / 1024:.1f} GiB")

    def save() -> None:
        made = plan_of(layers, width)
        with Store(path) as store:
            print(store.save_plan(made), end="")

    def load() -> None:
        with Store(path, read=True) as store:
            (row,) = store.db.query("SELECT hash FROM plans")
            found = store.plan(row["hash"])
        assert found is not None and len(found.deltas) == layers

    # tensors that are loaded are mapped from their files, and not counted
    for what, act, counted in (("stored", save, own), ("again", save, own), ("loaded", load, 0)):
        began = time.perf_counter()
        ended = forked.run(act, 3600.0)
        assert ended.code == 0, ended.err
        took, more = time.perf_counter() - began, ended.mib - counted
        print(f"  {what} in {took:.0f} s, {more:.0f} MiB beside the tensors")
    files = list(path.with_name("plan.db.tensors").iterdir())
    size = sum(f.stat().st_size for f in files) / 2**30
    print(
        f"  {len(files)} files of {size:.1f} GiB, {path.stat().st_size / 1024:.0f} KiB of database"
    )


def main() -> None:
    """Print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=given.folder))
    try:
        if given.rows:
            rows(folder, given.rows)
        if given.layers:
            plan(folder, given.layers, given.width)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
