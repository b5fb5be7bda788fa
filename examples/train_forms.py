"""Trains a small ViT from scratch with each form: `python examples/train_forms.py [OUT]`.

It shows a user's own training loop over a compiled model: one optimiser holds the model's
parameters and the plan's. The data are real scanned digits with their labels at 16 x 16 pixels,
797 to train on and 1000 to judge. About 80 minutes on a busy core; `--only NAME --seeds 1
--epochs 1` trains one case briefly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from attnpass import Plan, environment
from attnpass.tuner.digits import TRAIN, DigitsViT, augment, correct, images

SIDE, DEPTH, BATCH = 16, 6, 64
BACK = [f"blocks.{i}.attn" for i in range(DEPTH // 2, DEPTH)]
FRONT = [f"blocks.{i}.attn" for i in range(DEPTH // 2)]
MIDDLE = [f"blocks.{i}.attn" for i in range(2, DEPTH - 1)]


@dataclass(frozen=True)
class Case:
    """One plan to train with: a form with its options, at all sites or at those named."""

    form: str = "softmax"
    options: dict[str, Any] = field(default_factory=dict)
    sites: list[str] | None = None


CASES = {
    "softmax": Case(),
    "sigmoid, b = -log n": Case("sigmoid"),
    "sigmoid, b = 0": Case("sigmoid", {"L": 1.0}),
    "relu / n": Case("relu"),
    "relu, not scaled": Case("relu", {"alpha": 0.0}),
    "hydra, all layers": Case("hydra"),
    "hydra, last 3": Case("hydra", {}, BACK),
    "hydra, first 3": Case("hydra", {}, FRONT),
    "skipat r=2, layers 2 to 4": Case("skipat", {"r": 2.0}, MIDDLE),
    "skipat identity, layers 2 to 4": Case("skipat", {"r": 0.0}, MIDDLE),
}


def train(case: Case, seed: int, epochs: int, inner: str) -> tuple[float, float]:
    """Held-out accuracy and the last training loss of one run."""
    torch.manual_seed(seed)
    torch._dynamo.reset()
    x, y = images()
    x = F.interpolate(x, size=(SIDE, SIDE), mode="area")
    model = DigitsViT(dim=48, depth=DEPTH, heads=3, side=SIDE)
    plan = Plan.create(
        model, x[:BATCH], form=case.form, form_options=case.options, sites=case.sites
    )
    net = torch.compile(model, backend="attnpass", options={"plan": plan, "inner": inner})
    groups = [
        {"params": list(model.parameters()), "weight_decay": 0.05},
        {"params": list(plan.parameters()), "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=2e-3)
    steps = epochs * (TRAIN // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2e-3, total_steps=steps, pct_start=0.1
    )
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN)[: TRAIN // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(net(augment(x[rows])), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*model.parameters(), *plan.parameters()], 1.0)
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([net(part) for part in x[TRAIN:].split(100)])
    return float(correct(logits, y[TRAIN:]).mean()), float(loss.detach())


def table(result: dict[str, Any]) -> list[str]:
    """The accuracies as rows of Markdown."""
    rows = ["| trained from scratch | held-out accuracy, mean ± deviation | least | seeds |"]
    rows.append("| --- | --- | --- | --- |")
    for name, row in result["cases"].items():
        hits = row["accuracy"]
        spread = f"{row['mean']:.2%} ± {row['deviation']:.2%}"
        rows.append(f"| {name} | {spread} | {min(hits):.2%} | {len(hits)} |")
    return rows


def main() -> None:
    """Train every case with every seed; write all accuracies, print means and spreads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default="benchmarks/results/from_scratch_cpu.json")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--inner", default="inductor")
    given = parser.parse_args()
    rows: dict[str, Any] = {}
    for name, case in CASES.items():
        if given.only not in name:
            continue
        start = time.time()
        found = [train(case, s, given.epochs, given.inner) for s in range(given.seeds)]
        hits = [a for a, _ in found]
        rows[name] = {
            "accuracy": hits,
            "mean": statistics.mean(hits),
            "deviation": statistics.stdev(hits) if len(hits) > 1 else None,
            "loss": [b for _, b in found],
            "seconds": round(time.time() - start, 1),
        }
        print(f"{name:32} {100 * rows[name]['mean']:.2f} %  {hits}", flush=True)
    result = {
        "command": "python examples/train_forms.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "epochs": given.epochs,
        "held_out": len(images()[0]) - TRAIN,
        "cases": rows,
    }
    Path(given.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
