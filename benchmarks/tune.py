"""A task tuned from nothing: `python benchmarks/tune.py CASE [OUT]`.

Writes the result of `attnpass tune` with a fresh database: held-out accuracy with its bound,
latency ratios of interleaved pairs against the compiled SDPA model, device, versions, date. Every
plan's output is checked before it is timed (worker.py). With ``--db`` a run that was interrupted
goes on; no seconds are then given.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
DISTIL = ["--recover", "distil", "--recover-budget"]
CASES = {
    "digits": ["digits", "--max-drop", "0.02"],
    "digits_recovered": ["digits", "--max-drop", "0.01", *DISTIL, "5m"],
    "minilm_recovered": [
        "examples/minilm.py:mrr",
        "--max-drop",
        "0.01",
        *DISTIL,
        "10m",
        "--forms",
        "sigmoid,skipat r=0.5",
        "--trials",
        "6",
    ],
    "minilm_512_bf16": [
        "examples/minilm.py:mrr_512_bf16",
        "--max-drop",
        "0.01",
        "--budget",
        "75m",
        *DISTIL,
        "15m",
        "--forms",
        "hydra,skipat r=0.5,skipat r=1",
        "--trials",
        "8",
    ],
    "images": [
        "examples/images.py:task",
        "--effort",
        "full",
        "--max-drop",
        "0.01",
        "--budget",
        "15m",
        *DISTIL,
        "5m",
    ],
    "tabular": [
        "examples/tabular.py:task",
        "--max-drop",
        "0.01",
        "--budget",
        "30m",
        *DISTIL,
        "15m",
    ],
    "byte_model": [
        "examples/byte_model.py:task",
        "--max-drop",
        "0.016",
        "--budget",
        "25m",
        *DISTIL,
        "12m",
    ],
    "receptors": ["examples/receptors.py:task", "--max-drop", "0.01"],
}
REPORTED = {"images"}
"""Cases whose report is kept beside the result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--db", type=Path)
    given = parser.parse_args()
    out = given.out or ROOT / f"benchmarks/results/{given.case}_cpu.json"
    task, *rest = CASES[given.case]
    effort = [] if "--effort" in rest else ["--effort", "quick"]
    command = ["tune", task, *effort, *rest, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "attnpass.tuner.cli"]
        where = ["--db", str(given.db or f"{folder}/a.db")]
        start = time.monotonic()
        done = subprocess.run(
            [*program, *command, *where, "--out", folder],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=True,
        )
        seconds = time.monotonic() - start
        result = json.loads(done.stdout)
        if given.case in REPORTED:
            page = str(out.resolve().with_suffix(".html"))
            report = ["report", result["run"], "--out", page, *where]
            subprocess.run([*program, *report], cwd=ROOT, check=True)
    keep = (
        "run",
        "created",
        "status",
        "task",
        "metric",
        "settings",
        "device",
        "versions",
        "facts",
        "sensitivity",
        "fit",
        "tried",
        "front",
        "nearest",
        "best",
    )
    row = {
        "command": shlex.join(["attnpass", *command]),
        "seconds": None if given.db else round(seconds, 1),
        **{k: result[k] for k in keep},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n")
    print(f"{out}: best {row['best']}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
