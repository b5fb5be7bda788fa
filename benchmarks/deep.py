"""Cost tables of deep models, recorded: `python benchmarks/deep.py [DEPTH ...]`.

Vision transformers of 24 and 96 layers (pre-norm, width 32) are trained here on the scanned
digits, at 16 x 16 pixels (65 tokens) and 8 x 8 (17 tokens). Then, as in a run, every choice is
calibrated, and the damage of each (site, choice) alone is measured. Beside it the drops of random
plans, on all validation items, which tell how damages add up. `benchmarks/search.py` searches on
these tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass import environment
from attnpass.store import Store
from attnpass.task import Task
from attnpass.tuner import digits
from attnpass.tuner.measure import scores
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import Settings, inspect_task
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.candidates import Candidates, measure_damage
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import Session
from attnpass.tuner.search.speed import Savings

RESULTS = Path(__file__).parent / "results"
SIDES = {24: 16, 96: 8}
WIDTH, EPOCHS, PLANS = 32, 40, 40


def trained(depth: int) -> nn.Module:
    """A vision transformer of so many layers, trained on the digits task's training images."""
    torch.manual_seed(0)
    model = digits.DigitsViT(dim=WIDTH, depth=depth, heads=4, side=SIDES[depth])
    with torch.no_grad():
        for block in model.blocks:  # the stream does not grow with depth
            for last in (block.attn.proj, block.mlp[-1]):
                last.weight.mul_((2 * depth) ** -0.5)
    x, y = digits.images()
    x, y = F.avg_pool2d(x, 32 // SIDES[depth])[: digits.TRAIN], y[: digits.TRAIN]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = EPOCHS * math.ceil(len(x) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for epoch in range(EPOCHS):
        for part in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(model(digits.augment(x[part])), y[part])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        if epoch % 5 == 0:
            print(f"{depth} layers, epoch {epoch}: {loss.item():.3f}", flush=True)
    return model.eval()


def task(depth: int, weights: Mapping[str, Tensor]) -> Task:
    """The digits at a smaller size, for a model of so many layers."""
    model = digits.DigitsViT(dim=WIDTH, depth=depth, heads=4, side=SIDES[depth])
    model.load_state_dict(weights)
    x, y = digits.images()
    x = F.avg_pool2d(x, 32 // SIDES[depth])
    train, held, labels = x[: digits.TRAIN], x[digits.TRAIN :], y[digits.TRAIN :]
    pairs = zip(held.split(50), labels.split(50), strict=True)
    return Task(
        name=f"layers_{depth}",
        model=model.eval(),
        example=(held[:16],),
        calibration=[(part,) for part in train[:128].split(32)],
        validation=[((part,), label) for part, label in pairs],
        score=digits.correct,
    )


HAND: dict[str, Task] = {}
sys.modules["deep"] = sys.modules[__name__]  # a task is named by its module


def at_hand() -> Task:
    """The task that is recorded."""
    return HAND["task"]


def drawn(legal: Mapping[str, Any], pick: random.Random) -> dict[str, str]:
    """A random plan that converts any share of the sites."""
    share = pick.random() ** 2
    return {
        s: pick.choice([c for c in row if c != "softmax"]) if pick.random() < share else "softmax"
        for s, row in legal.items()
    }


def recorded(depth: int) -> dict[str, Any]:
    """The damages, and the drops of random plans, of a model of so many layers."""
    weights = trained(depth).state_dict()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "a.db")) as store:
        HAND["task"] = task(depth, weights)
        inspection = inspect_task(Settings("deep:at_hand"), store)
        session = Session(inspection.run, store, ProgressPrinter(quiet=True))
        baseline, library = measure_baseline(inspection, session), PieceLibrary(inspection)
        fits = library.calibrate(session)
        saved = Savings(dict.fromkeys(fits, 1.0))
        candidates = Candidates(inspection, session, baseline, library, 1e3, saved)
        *_, damage = measure_damage(candidates)
        capture, pick, plans = inspection.capture, random.Random(depth), []
        batches = range(len(inspection.task.validation))
        whole = torch.cat([baseline.selection, baseline.held_out]).mean()
        for _ in range(PLANS):
            forms = drawn(damage, pick)
            capture.use(library.plan(forms))
            taken = scores(inspection.task, capture, batches).main
            capture.use(None)
            drop = float(whole - taken.mean())
            plans.append({"forms": forms, "drop": drop, "items": len(taken)})
            converted = sum(c != "softmax" for c in forms.values())
            print(f"{converted} converted: {drop:.3f}", flush=True)
    return {
        "command": " ".join(["python benchmarks/deep.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "load": os.getloadavg(),
        "score": float(whole),
        "sensitivity": damage,
        "plans": plans,
    }


def main() -> None:
    """Train, record, keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("depths", nargs="*", type=int, default=[24, 96])
    for depth in parser.parse_args().depths:
        value = recorded(depth)
        path = RESULTS / f"layers_{depth}_cpu.json"
        path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
