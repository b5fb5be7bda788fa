"""The built-in task, tuned from nothing: `python benchmarks/digits.py [OUT]`.

Writes the result of `attnpass tune digits --effort quick --max-drop 0.02` with a fresh database:
held-out accuracy with its bound, latency ratios of interleaved pairs against the compiled SDPA
model, device, versions, date. Every plan's output is checked before it is timed (worker.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = ["tune", "digits", "--effort", "quick", "--max-drop", "0.02", "--json"]


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/digits_cpu.json")
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "attnpass.tuner.cli",
                *COMMAND,
                "--db",
                f"{folder}/a.db",
                "--out",
                folder,
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - start
    result = json.loads(done.stdout)
    keep = (
        "run",
        "created",
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
        "best",
    )
    row = {
        "command": "attnpass " + " ".join(COMMAND),
        "seconds": round(seconds, 1),
        **{k: result[k] for k in keep},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n")
    print(f"{out}: best {row['best']}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
