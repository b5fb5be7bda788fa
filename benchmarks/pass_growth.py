"""How the pass grows with layers: `python benchmarks/pass_growth.py [OUT]`.

The backend's time on stacks of 12 to 96 blocks with an inner compiler that does nothing, with a
form and without a plan; and the pass beside inductor's cold compile of 12 blocks. Each in fresh
processes; written as JSON. `--against FOLDER` measures another checkout in turn with this one:
the CPU time of the pass, least of several, and the ratios of the pairs, this one over the other,
beside those of this one over itself.
"""

from __future__ import annotations

import cProfile
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

LAYERS = (12, 24, 48, 96)
HERE = Path(__file__).resolve().parent.parent


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.o = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)
        wide = nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)
        self.mlp = nn.Sequential(nn.LayerNorm(64), *wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 16))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-2, -1) * 16**-0.5).softmax(-1)
        x = x + self.o((a @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def seconds(
    layers: int, options: dict[str, Any], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Seconds of the clock in the backend, and of them in the inner compiler."""
    from attnpass import backend
    from attnpass.compiled import graph

    spent = {"backend": 0.0, "inner": 0.0}
    real = backend.compile_inner

    def inner(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return real(*args, **kwargs)
        finally:
            spent["inner"] += clock() - start

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        out = backend.attnpass_backend(*args, **kwargs)
        spent["backend"] += clock() - start
        return out

    backend.compile_inner = graph.compile_inner = inner
    torch._dynamo.reset()
    model = nn.Sequential(*(Block() for _ in range(layers))).eval()
    try:
        with torch.no_grad():
            torch.compile(model, backend=timed, options=options)(torch.randn(2, 64, 64))
    finally:
        backend.compile_inner = graph.compile_inner = real
    return spent["backend"], spent["inner"]


def growth() -> dict[str, Any]:
    """The pass alone at every number of layers, warm, and a backend without a plan."""
    seconds(12, {"form": "sigmoid", "inner": "eager"})
    out: dict[str, Any] = {}
    for n in LAYERS:
        total, inside = seconds(n, {"form": "sigmoid", "inner": "eager"})
        out[str(n)] = total - inside
        out[f"{n} without a plan"] = seconds(n, {"form": "none", "inner": "eager"})[0]
    return out


def cold() -> dict[str, float]:
    """The first compile of 12 layers by inductor: the pass and the rest."""
    total, inside = seconds(12, {"form": "sigmoid"})
    return {"pass": total - inside, "inner": inside}


def fresh(part: str, checkout: Path = HERE, **env: str) -> Any:
    """One part in a process of its own, of this checkout or another."""
    done = subprocess.run(
        [sys.executable, str(checkout / "benchmarks" / "pass_growth.py"), part],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(checkout), **env},
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def repeated() -> dict[str, float]:
    """The least CPU seconds of the pass on 12 and 24 layers, of several in one process.

    Other programs on the machine only ever add to a time, so the least one says most. The number
    of function calls (Dynamo's part counts, too) does not depend on them at all.
    """
    found = {}
    for n, times in ((12, 8), (24, 4)):
        options = {"form": "sigmoid", "inner": "eager"}
        runs = [seconds(n, options, time.process_time) for _ in range(times)]
        found[str(n)] = min(total - inside for total, inside in runs)
        profile = cProfile.Profile()
        profile.runcall(seconds, n, options)
        found[f"{n} calls"] = sum(entry.callcount for entry in profile.getstats())
    return found


def against(other: Path, rounds: int = 5) -> dict[str, Any]:
    """Ratios of the pass here over another checkout's, in pairs of neighbours in time."""
    from served_pairs import commit

    from attnpass import environment

    runs = [(fresh("repeat"), fresh("repeat", other), fresh("repeat")) for _ in range(rounds)]
    found: dict[str, Any] = {
        "command": "python benchmarks/pass_growth.py --against FOLDER",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "load": os.getloadavg(),
        "other": commit(other),
        "runs": runs,
    }
    for n in ("12", "24"):
        ratios = sorted(a[n] / b[n] for a, b, _ in runs)
        same = sorted(a[n] / c[n] for a, _, c in runs)
        found[n] = {
            "ratio": statistics.median(ratios),
            "ratio_from_to": [ratios[0], ratios[-1]],
            "same_over_same": [same[0], statistics.median(same), same[-1]],
            "least_over_least": min(min(a[n], c[n]) for a, _, c in runs)
            / min(b[n] for _, b, _ in runs),
            "calls_over_calls": runs[0][0][f"{n} calls"] / runs[0][1][f"{n} calls"],
        }
    return found


def main() -> None:
    parts = {"growth": growth, "cold": cold, "repeat": repeated}
    if sys.argv[1:2] and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]]()))
        return
    if sys.argv[1:2] == ["--against"]:
        row = against(Path(sys.argv[2]).resolve())
        (HERE / "benchmarks/results/pass_growth_pairs_cpu.json").write_text(
            json.dumps(row, indent=1) + "\n"
        )
        print(json.dumps({k: v for k, v in row.items() if k != "runs"}))
        return
    from attnpass import environment

    out = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/pass_growth_cpu.json")
    runs = [fresh("growth") for _ in range(3)]
    with tempfile.TemporaryDirectory() as cache:
        first = fresh("cold", TORCHINDUCTOR_CACHE_DIR=cache)
    median = {str(n): statistics.median(r[str(n)] for r in runs) for n in LAYERS}
    row = {
        "command": "python benchmarks/pass_growth.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "pass_seconds_warm": median,
        "no_plan_seconds_96": statistics.median(r["96 without a plan"] for r in runs),
        "per_layer_96_over_12": (median["96"] / 96) / (median["12"] / 12),
        "runs": runs,
        "cold_12": first,
        "pass_share_of_cold_compile_12": first["pass"] / first["inner"],
    }
    out.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k != "runs"}))


if __name__ == "__main__":
    main()
