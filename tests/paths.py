"""The kernels' tests under every instruction set: `python tests/paths.py [SET ...] [--write]`.

Those of this machine's architecture run as they are, NEON on another machine under an emulator,
and ``sanitizers`` stands for this machine's own with every access to memory watched: ``apart.py``
says what each needs. Ends with 1 where a test fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from attnpass.environment import cpu_name
from attnpass.kernels.cpu import build

ROOT = Path(__file__).resolve().parent.parent
FEW = ("tests/kernels/test_kernel_fuzz.py", "tests/kernels/cpu/test_pointwise_short.py")


def outcome(which: str) -> dict[str, int]:
    """How many tests passed, failed or were skipped."""
    watched = which == "sanitizers"
    more = {"ATTNPASS_SANITIZE": "1"} if watched else {"ATTNPASS_INSTRUCTIONS": which}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", "not slow"]
    done = subprocess.run(
        [*command, *(FEW if watched else ["tests/kernels"])],
        env={**os.environ, **more},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = done.stdout.strip().splitlines()[-1]
    print(f"{which}: {last}", flush=True)
    return {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}


def main() -> None:
    asked = [x for x in sys.argv[1:] if x != "--write"]
    sets = asked or [*dict.fromkeys([*build.family(), "neon"]), "sanitizers"]
    found = {which: outcome(which) for which in sets}
    if "--write" in sys.argv:
        row = {"command": "make paths", "date": time.strftime("%Y-%m-%d"), "device": cpu_name()}
        row |= {"torch": torch.__version__, "tests": found}
        out = ROOT / "benchmarks" / "results" / "kernel_paths_cpu.json"
        out.write_text(json.dumps(row, indent=1) + "\n")
    sys.exit(
        any(set(one) - {"passed", "skipped"} or "passed" not in one for one in found.values())
    )


if __name__ == "__main__":
    main()
