"""What the pass costs: `python benchmarks/pass_cost.py [OUT]`.

Import time over torch, the pass (normalise, match, rewrite, re-trace) against the inner compile of
the same model, switching a plan in a capture, and whether a second process hits the compiler's
caches. Medians of fresh processes; written as JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT = (
    "import time, torch; t = time.perf_counter(); import attnpass; print(time.perf_counter() - t)"
)
COMPILE = """
import json, os, sys, time
import torch
import attnpass, attnpass.backend as backend
from attnpass.compiled import graph
from attnpass.task import load_task
task = load_task("digits")
spent = {"inner": 0.0}
real = backend.compile_inner
def compile_inner(*a, **k):
    start = time.perf_counter()
    try:
        return real(*a, **k)
    finally:
        spent["inner"] += time.perf_counter() - start
backend.compile_inner = graph.compile_inner = compile_inner
entry = backend.attnpass_backend
def timed(*a, **k):
    start = time.perf_counter()
    try:
        return entry(*a, **k)
    finally:
        spent["backend"] = time.perf_counter() - start
with torch.no_grad():
    fast = torch.compile(task.model, backend=timed, options={"form": "hydra"})
    fast(*task.example)
from torch._dynamo.utils import counters
spent["pass"] = spent["backend"] - spent["inner"]
spent["sites"] = len(attnpass.compiled_report().rewritten)
spent["aot"] = {k: v for k, v in counters["aot_autograd"].items() if "cache" in k}
capture = attnpass.Capture(task.model).trace(*task.example)
plan = attnpass.Plan.create(task.model, *task.example, form="sigmoid")
times = []
for _ in range(20):
    start = time.perf_counter()
    capture.use(plan)
    times.append(time.perf_counter() - start)
spent["switch_ms"] = 1e3 * sorted(times)[10]
print(json.dumps(spent))
"""


def run(code: str, **env: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    from attnpass import environment

    out = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/pass_cost_cpu.json")
    imports = [1e3 * float(run(IMPORT)) for _ in range(5)]
    cold, warm = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(json.loads(run(COMPILE, TORCHINDUCTOR_CACHE_DIR=cache)))
            warm.append(json.loads(run(COMPILE, TORCHINDUCTOR_CACHE_DIR=cache)))
    row = {
        "command": "python benchmarks/pass_cost.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "model": "digits ViT, 6 layers, form hydra, inductor, batch 16",
        "import_over_torch_ms": {"median": statistics.median(imports), "all": imports},
        "cold": cold,
        "second_process": warm,
        "pass_share_of_cold_compile": statistics.median(c["pass"] / c["inner"] for c in cold),
        "switch_plan_ms": statistics.median(c["switch_ms"] for c in cold + warm),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n")
    print(
        json.dumps(
            {
                k: row[k]
                for k in ("import_over_torch_ms", "pass_share_of_cold_compile", "switch_plan_ms")
            }
        )
    )


if __name__ == "__main__":
    main()
