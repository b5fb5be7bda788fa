"""A model whose call takes a second: `python benchmarks/slow_calls.py [OUT]`.

Seconds until the tuner knows the baseline with its ceiling, and what five forms gain: the
pretrained text encoder on 512 tokens. A few items are timed, and a short look at all of them says
whether they stand for them. Compiling is counted; it is most of the time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attnpass import Task, environment
from attnpass.store import Store
from attnpass.tuner.measure import Conditions
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Settings, inspect_task
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.ceiling import items_to_time, measure_ceiling
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.run import one_worker
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import measure_savings

HERE = Path(__file__).parent


def task() -> Task:
    """Retrieval by the text encoder, few items: only the shape of a call matters here."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import minilm

    found: Task = minilm.task(count=64, learn=32, length=512)
    found.validation = list(found.validation)[:4]
    return found


def measured(path: str, **more: Any) -> dict[str, Any]:
    """Both stages of a run on a task."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        inspection = inspect_task(Settings(path, **more), store)
        session = Session(inspection.run, store, ProgressPrinter())
        baseline, library = measure_baseline(inspection, session), PieceLibrary(inspection)
        library.calibrate(session)
        with one_worker(inspection, store, lambda: False) as worker:
            latencies = Latencies(inspection, session, worker)
            few = items_to_time(inspection, baseline.seconds / sum(baseline.sizes))
            start = time.perf_counter()
            ceiling = measure_ceiling(latencies, few)
            known = time.perf_counter()
            savings = measure_savings(latencies, library, ceiling)
            end = time.perf_counter()
    return {
        "items": latencies.items,
        "seconds": {"ceiling": known - start, "forms": end - known, "both": end - start},
        "base_ms": ceiling.base_ms,
        "floor": ceiling.floor,
        "ceiling": ceiling.over_bare.as_dict(),
        "ceiling_skipat": ceiling.over_skipped.as_dict(),
        "lossless": ceiling.softmax.as_dict(),
        "forms": {choice: found.as_dict() for choice, found in savings.ratios.items()},
        "left_out": list(savings.slower),
        "undecided": list(savings.undecided),
        "conditions": _as_dict(ceiling.conditions),
    }


def _as_dict(conditions: Conditions | None) -> dict[str, Any]:
    return {} if conditions is None else conditions.as_dict()


def main() -> None:
    """Measure, print, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default=str(HERE / "results" / "slow_calls_cpu.json"))
    given = parser.parse_args()
    row = {
        "command": "python benchmarks/slow_calls.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        **measured(f"{__file__}:task"),
    }
    Path(given.out).write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row["seconds"]))


if __name__ == "__main__":
    main()
