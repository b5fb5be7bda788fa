"""A plan met with a model: does it fit, is it legal, and how do both score here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import PlanError
from attnpass.plan import Plan, assign
from attnpass.task import Task
from attnpass.text import listed
from attnpass.torch_internals import pytree
from attnpass.tuner.measure import scores


@dataclass(frozen=True)
class Verification:
    """The outcome of a plan on a task's model.

    Attributes:
        plan: its hash. problems: one line each. rewritten: changed sites with their forms.
        score, baseline: means of the converted and of the unchanged model over all ``items``.
        measured: the numbers that the plan carries. torch: the version here.
    """

    plan: str
    problems: list[str]
    rewritten: dict[str, str]
    score: float
    baseline: float
    items: int
    measured: Mapping[str, Any]
    torch: str

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


def verify_plan(plan: Plan, task: Task) -> Verification:
    """What is wrong with a plan on the task's model, and the score of both.

    Raises:
        CaptureError: the model cannot be captured. TaskError: scores that are not usable.
    """
    capture = call(Capture(task.model).trace, task.example)
    problems = problems_of(plan, capture)
    batches = range(len(task.validation))
    base, converted = Counting(capture), Counting(capture)
    before = scores(task, base, batches).main
    rewritten = capture.use(plan)
    after = scores(task, converted, batches).main
    if converted.bad > base.bad:
        problems.append(
            f"expected finite outputs, got {converted.bad - base.bad} that are NaN or infinite"
            " under the plan alone; calibrate or train it again"
        )
    return Verification(
        plan=plan.hash,
        problems=problems,
        rewritten=rewritten,
        score=float(after.mean()),
        baseline=float(before.mean()),
        items=len(after),
        measured=plan.measured,
        torch=torch.__version__,
    )


class Counting:
    """A model that counts the numbers of its outputs that are not finite: scores may hide them."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model, self.bad = model, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        out = self.model(*args, **kwargs)
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.bad += int((~torch.isfinite(leaf)).sum())
        return out


def problems_of(plan: Plan, capture: Capture) -> list[str]:
    """Why a plan does not fit a captured model, one line each."""
    return [*_misfits(plan, capture), *_other_weights(plan, capture)]


def _misfits(plan: Plan, capture: Capture) -> list[str]:
    """Sites of the plan that the model lacks, and entries that do not fit or are not legal."""
    problems = [str(error) for error in plan.absent({s.name for s in capture.sites})]
    for _, layer in capture.layers:
        for region in layer.regions:
            try:
                plan.module(region.site, strict=True, weights=layer.weights)
            except PlanError as error:
                problems.append(str(error))
    return problems


def _other_weights(plan: Plan, capture: Capture) -> list[str]:
    """A problem where the plan was measured with other weights than the model has."""
    base = Plan(assign(capture.sites, "softmax")[0])
    capture.bind_plan(base)
    changed = [
        name
        for name, entry in base.sites.items()
        if name in plan.sites and plan.sites[name].weights not in ("", entry.weights)
    ]
    if not changed:
        return []
    return [
        "expected the weights that the plan was measured with, got others at"
        f" {listed(changed)}: its numbers are void, calibrate again"
    ]
