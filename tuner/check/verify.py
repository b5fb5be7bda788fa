"""A plan met with a model: does it fit, is it legal, what does it score here."""

from __future__ import annotations

from typing import Any

import torch

from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import PlanError
from attnpass.plan import Plan, assign
from attnpass.task import Task
from attnpass.tuner.measure.accuracy import scores


def verify(plan: Plan, task: Task) -> dict[str, Any]:
    """What is wrong (one line each), what is rewritten, and the score of plan and model."""
    capture = call(Capture(task.model).trace, task.example)
    problems = [str(error) for error in plan.absent({s.name for s in capture.sites})]
    for site in capture.sites:
        try:
            plan.module(site, strict=True)
        except PlanError as error:
            problems.append(str(error))
    base = Plan(assign(capture.sites, "softmax")[0])
    capture.own(base)
    changed = [
        n
        for n, e in base.sites.items()
        if n in plan.sites and plan.sites[n].weights not in ("", e.weights)
    ]
    if changed:
        problems.append(
            f"expected the weights that the plan was measured with, got others at"
            f" {', '.join(changed)}: its numbers are void, calibrate again"
        )
    batches = range(len(task.validation))
    before, _ = scores(task, capture, batches)
    rewritten = capture.use(plan)
    after, _ = scores(task, capture, batches)
    return {
        "plan": plan.hash,
        "problems": problems,
        "rewritten": rewritten,
        "score": float(after.mean()),
        "baseline": float(before.mean()),
        "items": len(after),
        "measured": plan.measured,
        "torch": torch.__version__,
    }
