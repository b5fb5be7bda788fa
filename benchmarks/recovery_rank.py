"""Which cheap signal foretells what a plan loses after distillation.

`python benchmarks/recovery_rank.py CASE` draws plans at random, takes the signals of each before
it is distilled, distils all with the same number of steps, and prints Spearman's rank correlation
of every signal with the drop on held-out items and with the change of the outputs that is left,
with intervals at 95 % (bootstrap over plans). A plan that is in the result file is not taken
again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import attnpass
from attnpass import environment
from attnpass.capture import Capture
from attnpass.plan import Plan
from attnpass.recover import (
    Checkpoint,
    DistilOptions,
    LocalLoss,
    Trainer,
    add_deltas,
    relative_error,
)
from attnpass.task import Task, load_task
from attnpass.tuner.check.similarity import cka
from attnpass.tuner.measure import bound, scores, split

ROOT = Path(__file__).parent.parent
CASES: dict[str, tuple[str, dict[str, dict[str, Any]], int]] = {
    "digits": ("digits", {"hydra": {}, "sigmoid": {}, "skipat": {"r": 0.5}}, 80),
    "tabular": (f"{ROOT}/examples/tabular.py:task", {"hydra": {}, "relu": {}}, 120),
}
"""Task, forms with their options, and steps of a plan's distillation."""
PLANS, LOCAL_STEPS, EARLY = 24, 100, 20
"""Plans, steps of the local stage of all pieces, and steps after which the loss is a signal."""
WATCHED = 2
"""Selection batches that the signals are taken on."""


class Pieces:
    """Every (site, form), calibrated and after the local stage, and the plans made of them."""

    def __init__(self, task: Task, choices: dict[str, dict[str, Any]]) -> None:
        self.capture = Capture(task.model).trace(*task.example)
        self.calibrated: dict[str, Plan] = {}
        self.errors: dict[str, dict[str, float]] = {}
        for form, options in choices.items():
            plan = Plan.create(task.model, *task.example, form=form, form_options=options)
            self.errors[form] = attnpass.calibrate(task.model, plan, task.calibration)
            self.calibrated[form] = plan
        self.trained = {form: plan.copy() for form, plan in self.calibrated.items()}
        for plan in self.trained.values():
            add_deltas(self.capture, plan, DistilOptions())
        objective = LocalLoss(self.capture, self.trained)
        options = DistilOptions(steps=LOCAL_STEPS, outputs=task.outputs)
        selection = [task.validation[i][0] for i in range(WATCHED)]
        trainer = Trainer(objective, options, 1.0, Checkpoint(None, ""))
        self.losses = trainer.run(task.recovery, selection, None).best

    def plan(self, assignment: dict[str, str], *, trained: bool) -> Plan:
        """A plan of its own by the form of every site that is converted."""
        pieces = self.trained if trained else self.calibrated
        plan = Plan({site: pieces[form].sites[site] for site, form in assignment.items()})
        for site, form in assignment.items():
            for mine, theirs in (
                (plan.values, pieces[form].values),
                (plan.deltas, pieces[form].deltas),
            ):
                if site in theirs:
                    mine[site] = theirs[site]
        return plan.copy()


class Judge:
    """Changes of the outputs and drops of plans."""

    def __init__(self, task: Task, capture: Capture) -> None:
        self.task, self.capture = task, capture
        self.halves = split([len(target) for _, target in task.validation])
        self.inputs = [task.validation[i][0] for i in range(WATCHED)]
        self.want, self.base = self._outputs(), self._scores(self.halves.held_out)
        self.base_selection = self._scores(self.halves.selection)

    def _outputs(self) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self.capture(*x).flatten(0, -2) for x in self.inputs])

    def _scores(self, batches: Sequence[int]) -> torch.Tensor:
        return scores(self.task, self.capture, batches).main

    def change(self, plan: Plan) -> tuple[float, float]:
        """The relative error of the outputs, and 1 - CKA of them."""
        self.capture.use(plan, strict=True)
        got = self._outputs()
        self.capture.use(None)
        return float(relative_error(got, self.want)), 1 - cka(got, self.want)

    def drop(self, plan: Plan, *, selection: bool = False) -> float:
        """The drop of the mean score on the held-out items, or on the selection."""
        base = self.base_selection if selection else self.base
        self.capture.use(plan, strict=True)
        found = self._scores(self.halves.selection if selection else self.halves.held_out)
        self.capture.use(None)
        return bound(base, found).drop


def take(task: Task, pieces: Pieces, judge: Judge, assignment: dict[str, str], steps: int) -> Any:
    """A plan's signals before distillation, and what is left after it."""
    before, local = (pieces.plan(assignment, trained=x) for x in (False, True))
    (change, unlike), (local_change, _) = judge.change(before), judge.change(local)
    lone = [judge.change(pieces.plan({s: f}, trained=False))[0] for s, f in assignment.items()]
    signals = {
        "layers converted": float(len(assignment)),
        "drop before": judge.drop(before, selection=True),
        "change of the outputs": change,
        "1 - CKA of the outputs": unlike,
        "sum of lone changes": sum(lone),
        "sum of calibration's errors": sum(pieces.errors[f][s] for s, f in assignment.items()),
        "sum of local losses": sum(
            pieces.losses.get(f"{f}|{s}", 0.0) for s, f in assignment.items()
        ),
        "change with trained pieces": local_change,
    }
    selection = [task.validation[i][0] for i in range(WATCHED)]
    plan, seen = local, list[float]()
    attnpass.distil(
        task.model,
        plan,
        task.recovery,
        selection=selection,
        steps=steps,
        softmax=True,
        outputs=task.outputs,
        progress=lambda _, step, total, loss: seen.append(loss),
    )
    signals["loss of the first steps"] = sum(seen[:EARLY]) / len(seen[:EARLY])
    left, _ = judge.change(plan)
    return {
        "forms": assignment,
        "signals": signals,
        "after": {"drop": judge.drop(plan), "change of the outputs": left},
    }


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Spearman's rank correlation of each signal with each truth: value, low, high at 95 %."""
    draw, found = np.random.default_rng(0), dict[str, dict[str, list[float]]]()
    drawn = [draw.integers(len(rows), size=len(rows)) for _ in range(1000)]
    for truth in rows[0]["after"]:
        y = np.array([row["after"][truth] for row in rows])
        for signal in rows[0]["signals"]:
            x = np.array([row["signals"][signal] for row in rows])
            again = [
                spearmanr(x[i], y[i]).statistic for i in drawn if np.ptp(x[i]) and np.ptp(y[i])
            ]
            low, high = np.quantile(again, [0.025, 0.975])
            value = [float(spearmanr(x, y).statistic), float(low), float(high)]
            found.setdefault(signal, {})[truth] = value
    return found


def table(result: dict[str, Any]) -> list[str]:
    """The correlations as rows of Markdown."""
    out = ["| signal before distillation | with the drop | with the change that is left |"]
    out.append("| --- | --- | --- |")
    for signal, row in result["correlations"].items():
        cells = [f"{x:.2f} [{low:.2f}, {high:.2f}]" for x, low, high in row.values()]
        out.append(f"| {signal} | {' | '.join(cells)} |")
    return out


def assignments(
    sites: Sequence[str], choices: Sequence[str], illegal: set[tuple[str, str]]
) -> Any:
    """Different plans at random, of one site or more, without end."""
    draw, seen = random.Random(0), set[tuple[tuple[str, str], ...]]()
    while True:
        share = draw.random()
        found = {s: draw.choice(choices) for s in sites if draw.random() < share}
        found = {s: f for s, f in found.items() if (s, f) not in illegal}
        key = tuple(found.items())
        if found and key not in seen:
            seen.add(key)
            yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--plans", type=int, default=PLANS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or ROOT / f"benchmarks/results/recovery_rank_{given.case}_cpu.json"
    path, choices, steps = CASES[given.case]
    task = load_task(path)
    pieces = Pieces(task, choices)
    judge = Judge(task, pieces.capture)
    sites = [s.name for s in pieces.capture.sites]
    illegal = {
        (s, f) for f, plan in pieces.calibrated.items() for s in sites if s not in pieces.errors[f]
    }
    result = json.loads(out.read_text()) if out.exists() else {"rows": []}
    result |= {
        "command": f"python benchmarks/recovery_rank.py {given.case}",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "steps": steps,
        "local_steps": LOCAL_STEPS,
        "early": EARLY,
    }
    known = [row["forms"] for row in result["rows"]]
    for i, assignment in enumerate(assignments(sites, list(choices), illegal)):
        if i >= given.plans:
            break
        if assignment not in known:
            result["rows"].append(take(task, pieces, judge, assignment, steps))
            out.write_text(json.dumps(result, indent=1) + "\n")
            print(f"plan {i}: {result['rows'][-1]['after']}", flush=True)
    result["correlations"] = correlations(result["rows"])
    out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
