"""Served latency beside another checkout: `python benchmarks/served_pairs.py FOLDER [OUT]`.

The digits model under the demo's best plan (SkipAt with r = 0 in the last three blocks), inductor,
batch 16. Three processes, two of this checkout and one of the other, each compile once and then
take turns; a pair is two turns that follow each other. Written as JSON: the ratios of this
checkout over the other, and of this one over itself. Beside it what ``Plan.hold`` saves: hydra in
all layers with a delta on every projection, held over not held, in one process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent.parent
PAIRS, CALLS = 30, 12


def served(form: str, form_options: dict[str, Any], sites: str, deltas: bool) -> Any:
    """The plan of the digits model, and what compiles and calls it on one batch."""
    import attnpass
    from attnpass.plan import Delta
    from attnpass.task import load_task

    task = load_task("digits")
    model = task.model.eval()
    (x,) = task.example
    options: dict[str, Any] = {"form_options": form_options, "sites": sites}
    plan = attnpass.Plan.create(model, x, form=form, **options)
    if deltas:
        capture = attnpass.Capture(model).trace(x)
        for site, weights in capture.projections().items():
            plan.deltas[site] = {p: Delta(w.shape) for p, w in weights.items()}
        capture.close()

    def compiled() -> Callable[[], float]:
        torch._dynamo.reset()
        run = torch.compile(model, backend="attnpass", options={"plan": plan, "strict": True})
        capture = attnpass.Capture(model).trace(x)
        capture.use(plan)
        with torch.inference_mode():
            torch.testing.assert_close(run(x), capture(x), rtol=1e-4, atol=1e-4)
        getattr(capture, "close", lambda: None)()  # not in every checkout that is compared

        def seconds() -> float:
            with torch.inference_mode():
                start = time.perf_counter()
                for _ in range(CALLS):
                    run(x)
                return (time.perf_counter() - start) / CALLS

        for _ in range(3):
            seconds()
        return seconds

    return plan, compiled


def serve() -> None:
    """Answer every line of the input with the seconds of a call."""
    _, compiled = served("skipat", {"r": 0.0}, "blocks.[345].attn", deltas=False)
    seconds = compiled()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(seconds(), flush=True)


def held() -> dict[str, Any]:
    """Seconds with sums held over seconds without, turn by turn."""
    plan, compiled = served("hydra", {}, "*", deltas=True)
    free = compiled()
    plan.hold()
    kept = compiled()
    turns = []
    for _ in range(PAIRS):
        plan.release()
        a = free()
        plan.hold()
        turns.append((kept(), a))
    return over(*zip(*turns, strict=True))


def over(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """The median of the times a over their neighbours b, and its interval."""
    from attnpass.tuner.measure.latency import ratio

    return ratio(a, b).as_dict()


def started(checkout: Path) -> subprocess.Popen[str]:
    """A process that serves by the sources of a checkout."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )


def asked(process: subprocess.Popen[str]) -> float:
    """The seconds of a turn."""
    assert process.stdin is not None
    assert process.stdout is not None
    print("go", file=process.stdin, flush=True)
    return float(process.stdout.readline())


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> None:
    if sys.argv[1] == "serve":
        serve()
        return
    from attnpass import environment

    other = Path(sys.argv[1]).resolve()
    out = Path(
        sys.argv[2] if len(sys.argv) > 2 else HERE / "benchmarks/results/served_pairs_cpu.json"
    )
    given = []
    for checkout in (HERE, other, HERE):
        given.append(started(checkout))
        assert given[-1].stdout is not None
        assert given[-1].stdout.readline().strip() == "ready"
    turns = [[asked(one) for one in given] for _ in range(PAIRS)]
    for one in given:
        one.communicate()
    first, second, third = zip(*turns, strict=True)
    row = {
        "command": "python benchmarks/served_pairs.py FOLDER",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "load": os.getloadavg(),
        "milliseconds": 1e3 * statistics.median(first),
        "other": commit(other),
        "this_over_other": over(first, second),
        "same_over_same": over(first, third),
        "held_over_default": held(),
    }
    out.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
