"""What can be gained on MiniLM-L6 at 256 and 512 tokens: `python benchmarks/encoder_speed.py`.

Speed alone: the forms are untrained, for their accuracy see recovery.py. Times are medians of
ratios to the compiled SDPA model, interleaved in one process, after the worker's correctness gate;
``bare`` (attention replaced by one touch of q, k and v) and ``skipped`` (every block but the first
left out) are what no plan can beat. The batch is of 16, no padding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from attnpass import Plan, Task, environment
from attnpass.tuner.measure import Failure, Protocol, Worker, floor, ratio

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import minilm  # noqa: E402

HALF = slice(2, 5)
"""Layers of skipat; the first has none before it."""
SKIPAT = {"r": 1.0, "kernel": 5}


def tokens_256() -> Task:
    """The encoder with a batch of 256 random tokens each."""
    return _task(256)


def tokens_512() -> Task:
    """The encoder with a batch of 512 random tokens each."""
    return _task(512)


def _task(tokens: int) -> Task:
    shape, generator = (minilm.BATCH, tokens), torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, shape, generator=generator)
    inputs = (ids, torch.ones(shape, dtype=torch.bool))
    return Task(
        name=f"MiniLM-L6, {tokens} tokens",
        model=minilm.encoder(),
        example=inputs,
        calibration=[inputs],
        validation=[(inputs, torch.zeros(minilm.BATCH, 384))],
        score=minilm.recall,
        outputs="features",
        pooled=True,
    )


def plans(task: Task) -> dict[str, Plan]:
    """By name: sigmoid everywhere, skipat in half of the layers, and both."""
    sigmoid = Plan.create(task.model, *task.example, form="sigmoid")
    names = list(sigmoid.sites)
    half = Plan.create(
        task.model, *task.example, form="skipat", form_options=SKIPAT, sites=names[HALF]
    )
    mixed = fill(half, sigmoid)
    return {"sigmoid": sigmoid, "skipat in half": half, "skipat in half, else sigmoid": mixed}


def fill(plan: Plan, other: Plan) -> Plan:
    """A copy of ``plan`` that takes from ``other`` what is softmax in it."""
    filled = plan.copy()
    for name, entry in plan.sites.items():
        if entry.form == "softmax" and name in other.values:
            filled.sites[name], filled.values[name] = other.sites[name], other.values[name]
    return filled


def measure(tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds, ceilings and speed-ups at one length."""
    return speed(f"{Path(__file__).resolve()}:tokens_{tokens}", plans(_task(tokens)), rounds)


def speed(path: str, made: dict[str, Plan], rounds: int) -> dict[str, Any]:
    """Milliseconds, ceilings and the speed-ups of plans ``made`` on the task at ``path``."""
    with tempfile.TemporaryDirectory() as folder, Worker(path, db=f"{folder}/a.db") as worker:
        files = [str(p.save(Path(folder) / f"{i}.json")) for i, p in enumerate(made.values())]
        replies = [
            worker.ceiling(Protocol(rounds)),
            worker.measure([None, None, *files], Protocol(rounds)),
        ]
    series = []
    for reply in replies:
        if isinstance(reply, Failure):
            sys.exit(f"expected times of {path}, got {reply.outcome}: {reply.why}")
        series.append(reply.times)
    (base, again, softmax, bare, skipped), (base2, again2, *rest) = series
    return {
        "baseline_ms": sorted(base)[len(base) // 2],
        "floor": max(floor(base, again), floor(base2, again2)),
        "softmax": ratio(base, softmax).as_dict(),
        "bare": ratio(base, bare).as_dict(),
        "skipped": ratio(base, skipped).as_dict(),
        "forms": {
            form: ratio(base2, times).as_dict() for form, times in zip(made, rest, strict=True)
        },
    }


def table(result: dict[str, Any]) -> list[str]:
    """Speed-ups over compiled SDPA with their intervals, as rows of Markdown."""
    names = list(result["tokens"]["256"]["forms"])
    columns = ["tokens", "compiled SDPA", "no attention", "no block but the first", *names]
    rows = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for tokens, row in result["tokens"].items():
        ratios = [row["bare"], row["skipped"], *row["forms"].values()]
        cells = [f"{r['median']:.2f}x [{r['low']:.2f}, {r['high']:.2f}]" for r in ratios]
        rows.append(f"| {tokens} | {row['baseline_ms']:.0f} ms | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/encoder_speed_cpu.json"
    )
    given = parser.parse_args()
    result = {
        "command": "python benchmarks/encoder_speed.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "rounds": given.rounds,
        "batch": minilm.BATCH,
        "tokens": {str(tokens): measure(tokens, given.rounds) for tokens in (256, 512)},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
