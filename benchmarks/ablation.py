"""What each part of the recovery recipe is worth: `python benchmarks/ablation.py CASE`.

Cases: a form in all six layers of the tables' model or of the byte model (`examples/`). Every
variant changes one thing of the recipe that `attnpass.distil` has by default, takes as many steps
from the same calibrated plan, and is judged on the same held-out items. The recipe itself
is taken with three seeds: differences below its spread say nothing. A variant that is in the
result file is not taken again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import attnpass
from attnpass import environment, forms
from attnpass.capture import Capture
from attnpass.plan import Plan
from attnpass.recover import (
    Checkpoint,
    DistilOptions,
    GlobalLoss,
    Trainer,
    add_deltas,
    distances,
    global_loss,
)
from attnpass.site import AttentionSite
from attnpass.task import Task, load_task
from attnpass.tuner.measure import bound, scores, split

ROOT = Path(__file__).parent.parent
CASES = {
    "tabular": ("examples/tabular.py:task", "hydra", 400),
    "byte_model": ("examples/byte_model.py:task", "hydra", 400),
}
"""Task, form in all layers, and steps."""
WATCHED = 2
"""Selection batches that choose the values that are kept."""


@dataclass(frozen=True)
class Variant:
    """One change of the recipe.

    Attributes:
        options: of ``DistilOptions``. run: takes the steps, by default ``attnpass.distil``.
        patch: constants of the loss, by module and name, while it runs.
    """

    options: dict[str, Any] = field(default_factory=dict)
    run: Callable[[Case, DistilOptions], None] | None = None
    patch: tuple[tuple[Any, str, Any], ...] = ()


@dataclass
class Case:
    """A task with its calibrated plan, which every variant starts from."""

    task: Task
    plan: Plan
    lessons: Sequence[Any]
    selection: list[Any]


def distil(case: Case, options: DistilOptions) -> None:
    """The recipe."""
    model, plan = case.task.model, case.plan
    attnpass.distil(model, plan, case.lessons, selection=case.selection, options=options)


def progressive(case: Case, options: DistilOptions) -> None:
    """Layers are converted one after the other, the last first, each with the same steps."""
    whole = case.plan
    sites = list(whole.sites)
    for count in range(1, len(sites) + 1):
        part = Plan({s: whole.sites[s] for s in sites[-count:]})
        part.values = {s: whole.values[s] for s in part.sites if s in whole.values}
        part.deltas = {s: whole.deltas[s] for s in part.sites if s in whole.deltas}
        each = replace(options, steps=max(options.steps // len(sites), 1))
        attnpass.distil(
            case.task.model, part, case.lessons, selection=case.selection, options=each
        )
        whole.values.update(part.values)
        whole.deltas.update(part.deltas)


class Mixed(nn.Module):
    """A form's output and softmax's, in a ratio that goes from softmax to the form."""

    share = 0.0

    def __init__(self, form: nn.Module, site: AttentionSite) -> None:
        super().__init__()
        self.form, self.softmax = form, forms.build("softmax", site)

    def forward(self, *inputs: Any) -> Tensor:
        """As the form's."""
        out: Tensor = self.form(*inputs)
        if Mixed.share < 1:
            out = Mixed.share * out + (1 - Mixed.share) * self.softmax(*inputs)
        return out


def mixing(case: Case, options: DistilOptions) -> None:
    """The student begins as softmax and becomes the form over the first half of the steps."""
    model, plan = case.task.model, case.plan
    teacher = Capture(model).trace(*case.task.example)
    add_deltas(teacher, plan, options)
    objective = GlobalLoss(model, teacher, plan, options.outputs, ())

    def chosen(site: AttentionSite, weights: Any) -> nn.Module | None:
        form = plan.module(site, weights=weights)
        return None if form is None else Mixed(form, site)

    objective.student.choose(chosen, lambda name: plan.deltas.get(name, {}))

    def told(_: str, step: int, total: int, loss: float) -> None:
        Mixed.share = min(2 * step / total, 1.0)

    Mixed.share = 0.0
    # the values that are kept are those of the form alone: no selection while it is mixed
    Trainer(objective, options, 1.0, Checkpoint(None, "")).run(case.lessons, (), told)
    Mixed.share = 1.0


def short_first(case: Case, options: DistilOptions) -> None:
    """Half of the steps on a quarter of the tokens of every batch, then all of them."""
    lessons = [tuple(x[:, : x.shape[1] // 4] for x in case.lessons[i]) for i in range(64)]
    halved = replace(options, steps=options.steps // 2)
    attnpass.distil(case.task.model, case.plan, lessons, options=halved)
    distil(case, replace(halved, seed=options.seed + 1))


VARIANTS = {
    "the recipe": Variant(),
    "the recipe, seed 1": Variant({"seed": 1}),
    "the recipe, seed 2": Variant({"seed": 2}),
    "rate 0.2": Variant({"rate": 0.2}),
    "rate 0.1": Variant({"rate": 0.1}),
    "rate 0.025": Variant({"rate": 0.025}),
    "deltas of rank 16": Variant({"rank": 16}),
    "deltas of rank 4": Variant({"rank": 4}),
    "no deltas": Variant({"rank": 0}),
    "attention's outputs only (local)": Variant({"local": 1.0}),
    "attention's outputs first (local 0.4)": Variant({"local": 0.4}),
    "outputs alone, no hidden states": Variant(patch=((global_loss, "HIDDEN_WEIGHT", 0.0),)),
    "hidden states alone": Variant(
        {"outputs": "features"}, patch=((global_loss, "HIDDEN_WEIGHT", 100.0),)
    ),
    "hidden states at ten times the weight": Variant(
        patch=((global_loss, "HIDDEN_WEIGHT", 10.0),)
    ),
    "temperature 1": Variant(patch=((distances, "TEMPERATURE", 1.0),)),
    "temperature 4": Variant(patch=((distances, "TEMPERATURE", 4.0),)),
    "the other precision": Variant({"autocast": "other"}),
    "the same 64 batches": Variant({"lessons": 64}),
    "layers one after the other": Variant(run=progressive),
    "from softmax to the form by mixing": Variant(run=mixing),
    "short inputs first": Variant(run=short_first),
}
TEXTS_ONLY = {"short inputs first"}
"""Variants that cut inputs, which a table's are not."""


def take(case: Case, variant: Variant, steps: int) -> tuple[Plan, float]:
    """The plan after one variant, and seconds."""
    given = dict(variant.options)
    native = environment.has_native_bfloat16("cpu")
    given["autocast"] = native != (given.get("autocast") == "other")
    lessons = case.lessons
    if "lessons" in given:
        lessons = [lessons[i] for i in range(given.pop("lessons"))]
    mine = replace(case, plan=case.plan.copy(), lessons=lessons)
    options = DistilOptions(steps=steps, outputs=given.pop("outputs", case.task.outputs), **given)
    start = time.monotonic()
    with ExitStack() as stack:
        for constant in variant.patch:
            stack.enter_context(mock.patch.object(*constant))
        (variant.run or distil)(mine, options)
    return mine.plan, time.monotonic() - start


def rows(case: Case, steps: int, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every variant's row: its drop on the held-out items, with the bound at 95 %."""
    halves = split([len(target) for _, target in case.task.validation])
    capture = Capture(case.task.model).trace(*case.task.example)
    base = scores(case.task, capture, halves.held_out).main

    def judged(plan: Plan) -> dict[str, Any]:
        capture.use(plan, strict=True)
        found = bound(base, scores(case.task, capture, halves.held_out).main).as_dict()
        capture.use(None)
        return found

    for name in names:
        if name == "calibrated only":
            yield name, {**judged(case.plan), "seconds": 0.0, "steps": 0}
            continue
        plan, seconds = take(case, VARIANTS[name], steps)
        yield name, {**judged(plan), "seconds": round(seconds, 1), "steps": steps}


def table(result: dict[str, Any]) -> list[str]:
    """The drops as rows of Markdown, in units of the score."""
    out = ["| change of the recipe | steps | drop | at most (95 %) | seconds |"]
    out.append("| --- " * 5 + "|")
    for name, row in result["rows"].items():
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        told = f"{row['drop']:.4f} | {row['upper']:.4f} | {seconds} |"
        out.append(f"| {name} | {row['steps']} | {told}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--only", default="", help="part of a variant's name")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or ROOT / f"benchmarks/results/ablation_{given.case}_cpu.json"
    path, form, steps = CASES[given.case]
    task = load_task(f"{ROOT}/{path}")
    plan = Plan.create(task.model, *task.example, form=form)
    attnpass.calibrate(task.model, plan, task.calibration)
    selection = [task.validation[i][0] for i in range(WATCHED)]
    case = Case(task, plan, task.recovery, selection)
    result = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    result |= {
        "command": f"python benchmarks/ablation.py {given.case}",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "task": task.name,
        "metric": task.metric,
        "form": form,
        "sites": list(plan.sites),
        "threads": torch.get_num_threads(),
    }
    wanted = [
        name
        for name in ("calibrated only", *VARIANTS)
        if given.only in name
        and name not in result["rows"]
        and not (given.case == "tabular" and name in TEXTS_ONLY)
    ]
    for name, row in rows(case, given.steps or steps, wanted):
        result["rows"][name] = row
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: drop {row['drop']:.4f}, {row['seconds']:.0f} s", flush=True)
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
