"""Plans judged for accuracy per minute: `python benchmarks/judging.py [OUT] [--task TASK]`.

A search as a run makes it, of 64 plans (a quick run allows 32, a full one 200). It judges them in
one capture, each on the selection items until it is rejected or done, from the layer on in which
it first differs from one that was judged before.
Beside it stands what a tuner does that compiles each plan before it scores it: the public
``torch.compile`` by inductor, and all selection items. Its plans are some of the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from attnpass import environment
from attnpass.capture import fresh_entry
from attnpass.store import Store
from attnpass.tuner.measure import scores
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Settings, inspect_task
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.candidates import Candidates, search_plans
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import Savings

HERE = Path(__file__).parent
COMPILED = 4
"""Plans that are compiled, too; each takes most of a minute."""


def judged(task: str, plans: int) -> dict[str, Any]:
    """Seconds per plan both ways."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        inspection = inspect_task(Settings(task, trials=plans), store)
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        baseline, library = measure_baseline(inspection, session), PieceLibrary(inspection)
        library.calibrate(session)
        saved = Savings({c: 1.0 + i / 10 for i, c in enumerate(inspection.settings.forms)})
        candidates = Candidates(inspection, session, baseline, library, 100.0, saved)
        damage = {
            site: {"softmax": 0.0, **{c: 1.0 + i for i, c in enumerate(choices)}}
            for site, choices in inspection.legal.items()
        }
        captured, found = list[float](), list[Any]()

        def timed(plan: dict[str, str], of: Any = candidates.of) -> Any:
            start = time.perf_counter()
            found.append(of(plan))
            captured.append(time.perf_counter() - start)
            return found[-1]

        candidates.of = timed  # type: ignore[method-assign]
        with candidates.sharing():
            search_plans(candidates, damage)
        stride = max(1, len(found) // COMPILED)
        stopped = sum(len(x.scores) < len(baseline.selection) for x in found)
        batches = baseline.split.selection  # compiling resets Dynamo: it comes afterwards
        compiled = [_compiled(inspection, x.plan, batches) for x in found[::stride][:COMPILED]]
    per, each = statistics.mean(captured), statistics.mean(compiled)
    return {
        "task": task,
        "items": len(baseline.selection),
        "plans": len(captured),
        "stopped_early": stopped,
        "captured_s": captured,
        "compiled_s": compiled,
        "plans_per_minute": {"captured": 60 / per, "compiled": 60 / each},
        "ratio": (60 / per) / (60 / each),
    }


def _compiled(inspection: Any, plan: Any, batches: Any) -> float:
    """Seconds to compile a plan and to score it on all selection items."""
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        start = time.perf_counter()
        model = inspection.task.model
        fast = torch.compile(fresh_entry(model), backend="attnpass", options={"plan": plan})
        scores(inspection.task, fast, batches)
        return time.perf_counter() - start


def main() -> None:
    """Judge, print, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default=str(HERE / "results" / "judging_cpu.json"))
    parser.add_argument("--task", default="digits")
    parser.add_argument("--plans", type=int, default=64)
    given = parser.parse_args()
    row = {
        "command": "python benchmarks/judging.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "load": os.getloadavg(),
        **judged(given.task, given.plans),
    }
    Path(given.out).write_text(json.dumps(row, indent=1) + "\n")
    print({k: row[k] for k in ("plans_per_minute", "ratio", "stopped_early", "plans")})


if __name__ == "__main__":
    main()
