"""Distillation in a run: pieces locally, all of them in parallel, and whole plans globally.

LocalLoss distillation trains all pieces on one run of the original model per step; a plan made of
them can then be distilled globally. Both are stored, and both go on where they were interrupted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from attnpass import fingerprint
from attnpass.batch import Batch
from attnpass.capture import Capture
from attnpass.plan import Plan
from attnpass.recover import (
    Checkpoint,
    DistilOptions,
    GlobalLoss,
    LocalLoss,
    Objective,
    Progress,
    Trainer,
    add_deltas,
)
from attnpass.store import key_of
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.plan_row import Recovery
from attnpass.tuner.search.result import DistilledChoice
from attnpass.tuner.search.session import Session, Value

LOCAL_SHARE = 0.4
"""Share of the budget for the pieces; the rest is for whole plans."""

GLOBAL_STEPS = 150
"""Steps of the global stage that every plan should have."""

MOST_DISTILLED, MOST_OF_A_FORM = 4, 2
"""Choices that share the time of the local stage, and those of one form among them."""

WATCHED = 4
"""Selection batches that decide when a stage ends."""


@dataclass(frozen=True, eq=False)
class Distillation:
    """How one run distils.

    Attributes:
        watched: selection batches, not trained on, that decide when a stage ends; none where the
            selection judges, too.
    """

    inspection: Inspection
    session: Session
    watched: Sequence[int]

    @cached_property
    def selection(self) -> list[Batch]:
        """The inputs of the watched batches."""
        return [self.inspection.task.validation[i][0] for i in self.watched[:WATCHED]]

    @cached_property
    def student(self) -> Capture:
        """The capture that every plan is distilled in, one after the other."""
        return Capture(self.inspection.task.model)

    @cached_property
    def inputs(self) -> Sequence[Batch]:
        """The batches that are trained on."""
        task = self.inspection.task
        return task.recovery if len(task.recovery) else list(task.calibration)

    def training(self, granted: float, wanted: float) -> dict[str, object]:
        """``context``, with how often the time was halved: longer training is another one."""
        halved = max(round(math.log2(wanted / max(granted, 1e-3))), 0)
        return {**self.context, **({"halved": halved} if halved else {})}

    @cached_property
    def context(self) -> dict[str, object]:
        """All that a trained piece depends on: the model, the data, and how it is trained."""
        settings = self.inspection.settings
        return {
            **self.inspection.context,
            "recover": {
                "budget": settings.recover_budget,
                **({"steps": settings.recover_steps} if settings.recover_steps else {}),
                "rank": settings.recover_rank,
                "seed": settings.seed,
                "watched": len(self.selection),
            },
            "inputs": self.inspection.inputs,
            "recovery": fingerprint.recovery_digest(),
        }

    def options(self, amount: float) -> DistilOptions:
        """How a stage of so many seconds is trained, or of so many steps (``recover_steps``)."""
        s, outputs = self.inspection.settings, self.inspection.task.outputs
        long = {"steps": max(round(amount), 1)} if s.recover_steps else {"budget": amount}
        return DistilOptions(rank=s.recover_rank, seed=s.seed, outputs=outputs, **long)

    def find(self, kind: str, subject: str, context: Mapping[str, object]) -> Value | None:
        """A stored training without its outcome.

        Raises:
            KeyboardInterrupt: the run is to stop.
        """
        value = self.session.find(kind, subject, context)
        return None if value is None else {k: v for k, v in value.items() if k != "outcome"}


def worth_distilling(
    saved: Mapping[str, float], errors: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Up to ``MOST_DISTILLED`` choices, those that save most first; few of one form.

    A choice that some other one beats at every site, in what it saves and in the error that
    calibration left, is none of them.

    Args:
        saved: milliseconds per choice. errors: by choice and site.
    """

    def beats(a: str, b: str) -> bool:
        at = errors.get(b, {})
        better = (errors.get(a, {}).get(site, math.inf) < error for site, error in at.items())
        return saved[a] > saved[b] and bool(at) and all(better)

    kept, counts = list[str](), Counter[str]()
    for choice in sorted(saved, key=saved.__getitem__, reverse=True):
        form, _ = form_of(choice)
        if counts[form] < MOST_OF_A_FORM and not any(beats(other, choice) for other in saved):
            kept.append(choice)
            counts[form] += 1
    return kept[:MOST_DISTILLED]


def distil_pieces(
    distillation: Distillation, library: PieceLibrary, choices: Sequence[str], amount: float
) -> dict[str, DistilledChoice]:
    """Distil every (site, choice) locally, those that are not stored; the outcome per choice.

    All of them share the ``amount``, seconds or steps (``Settings.recover_amount``). The pieces of
    the library become the distilled ones.

    Raises:
        MeasureError: a loss is not finite; the pieces stay calibrated.
        KeyboardInterrupt: the run is to stop.
    """
    context = _local_context(distillation, amount)
    stored = {c: distillation.find("bank", c, context) for c in choices}
    done = {c: DistilledChoice(**value) for c, value in stored.items() if value is not None}
    known = {c: distillation.session.plan(row.plan) for c, row in done.items()}
    plans = {c: plan for c, plan in known.items() if plan is not None}
    # copies: where training fails, the pieces stay calibrated
    missing = {c: library.everywhere(c).copy() for c in choices if c not in plans}
    done = {c: done[c] for c in plans} | _train_pieces(distillation, missing, amount)
    for choice, plan in {**plans, **missing}.items():
        library.keep(choice, plan)
    return {c: done[c] for c in choices if c in done}


def _train_pieces(
    distillation: Distillation, plans: Mapping[str, Plan], amount: float
) -> dict[str, DistilledChoice]:
    """Train the pieces of plans by choice, in place, and store them."""
    capture, session = distillation.inspection.capture, distillation.session
    for plan in plans.values():
        capture.use(plan)  # brings what was stored to the model's device
        add_deltas(capture, plan, distillation.options(1.0))
    capture.use(None)
    objective = LocalLoss(capture, dict(sorted(plans.items())))  # the order of a checkpoint
    if not objective.units:
        return {}
    context = _local_context(distillation, amount)
    stage, saved = train(distillation, objective, amount, " ".join(sorted(plans)))
    done = {}
    for choice, plan in plans.items():
        keys = {tuple(k.split("|")): loss for k, loss in stage["best"].items()}
        losses = {site: loss for (c, site), loss in keys.items() if c == choice}
        name = session.store.save_plan(plan)
        # a choice without parameters had no part in the stage
        steps, taken = (stage["steps"], stage["seconds"]) if losses else (0, 0.0)
        done[choice] = DistilledChoice(name, losses, steps, taken)
        if steps or not losses:
            session.keep("bank", choice, context, done[choice].as_dict())
    saved.remove()
    return done


def _local_context(distillation: Distillation, amount: float) -> dict[str, object]:
    """All that a piece depends on that was trained for so long."""
    wanted = distillation.inspection.settings.recover_amount * LOCAL_SHARE
    return distillation.training(amount, wanted)


def affordable_plans(
    amount: float, distilled: Mapping[str, DistilledChoice], *, steps: bool = False
) -> int:
    """How many plans can be distilled globally in seconds, or in ``steps``; 1 or more.

    A global step is taken to be as long as three local ones of one choice.
    """
    if steps:
        return max(int(amount / GLOBAL_STEPS), 1)
    trained = [x for x in distilled.values() if x.steps]
    each = [x.seconds / x.steps / len(trained) for x in trained]
    return max(int(amount / (3 * GLOBAL_STEPS * max(1e-9, *each))), 1) if each else 1


def distil_plan(
    distillation: Distillation, plan: Plan, share: float, whole: float
) -> tuple[Plan, Recovery] | None:
    """A plan distilled globally in a share of the ``whole`` amount for plans, and what that did.

    One that is stored is taken, where it had about as many.

    Attention that stays softmax learns too. None where nothing in the plan can learn, or there
    was no time for a step.

    Raises:
        MeasureError: the loss is not finite. KeyboardInterrupt: the run is to stop.
    """
    inspection, session = distillation.inspection, distillation.session
    wanted = inspection.settings.recover_amount * (1 - LOCAL_SHARE)
    context = {**distillation.training(whole, wanted), "share": share, "softmax": True}
    value = distillation.find("recovered", plan.hash, context)
    stored = None if value is None else session.plan(value["plan"])
    if value is not None and stored is not None:
        return stored, Recovery.from_dict(value)
    better, capture = plan.copy(), inspection.capture
    capture.use(better)  # to the model's device
    capture.use(None)
    add_deltas(capture, better, replace(distillation.options(1.0), softmax=True))
    outputs, student = inspection.task.outputs, distillation.student
    objective = GlobalLoss(inspection.task.model, capture, better, outputs, (), student)
    if not objective.unit.trained:
        return None
    value, saved = train(distillation, objective, whole * share, plan.hash)
    if not value["steps"]:
        return None
    value["plan"] = session.store.save_plan(better)
    session.keep("recovered", plan.hash, context, value)
    saved.remove()
    return better, Recovery.from_dict(value)


def train(
    distillation: Distillation, objective: Objective, amount: float, name: str
) -> tuple[Value, Checkpoint]:
    """One stage with a checkpoint beside the database; the same command goes on from it.

    Returns the numbers of the stage, and the checkpoint, which is the caller's to remove when the
    result is stored.
    """
    session = distillation.session
    key = key_of(objective.name, name, session.resting(distillation.context))
    saved = Checkpoint(session.store.path.with_suffix(f".{key[:12]}.distil"), key)
    trainer = Trainer(objective, distillation.options(amount), 1.0, saved)
    memory, disk = (x / 2**20 for x in trainer.needs(distillation.selection))
    need = f"{memory:.0f} MiB of memory beside activations, {disk:.0f} MiB on disk"
    session.progress.say(f"distillation needs {need}", style="dim")
    with session.progress.stage(f"distil, {objective.name}: {name}", 100) as step:
        told = _progress(session, step)
        stage = trainer.run(distillation.inputs, distillation.selection, told)
    return stage.as_dict(), saved


def _progress(session: Session, step: Callable[[str], None]) -> Progress:
    """Progress of a stage in hundredths; ends it where the run is to stop."""
    told = 0

    def tell(_: str, done: int, total: int, loss: float) -> None:
        nonlocal told
        session.stop.check()
        while told < min(100 * done // max(total, 1), 100):
            told += 1
            step(f"loss {loss:.3g}")

    return tell
