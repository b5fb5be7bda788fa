"""The bank: every (site, choice) is fitted once and reused by every plan that contains it.

Calibrated from a few batches, then, where asked for, distilled locally, all of them in parallel on
one run of the original model per step (a library of blocks as in Puzzle, 2411.19146). A whole plan
made of such pieces can then be distilled globally.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnpass import fingerprint
from attnpass.capture import Capture
from attnpass.fingerprint import digest
from attnpass.plan import Delta, Entry, Plan, assign
from attnpass.recover import (
    Checkpoint,
    DistilOptions,
    GlobalLoss,
    LocalLoss,
    Objective,
    Progress,
    Trainer,
    add_deltas,
    fit_sites,
    observe,
)
from attnpass.seeds import seeded
from attnpass.store import Store, key_of
from attnpass.task import Task
from attnpass.tuner.progress import Voice
from attnpass.tuner.search.settings import CHOICES, Settings

LOCAL = 0.4
"""Share of the budget that goes into the bank; the rest into whole plans."""

STEPS = 150
"""Of the global stage, that every plan should have."""

WATCHED = 4
"""Selection batches that decide when a stage ends."""

Piece = tuple[dict[str, nn.Parameter], dict[str, Delta]]
"""A form's parameters, and what is added to the weights of its site."""

Cached = Callable[[str, str, dict[str, Any]], dict[str, Any] | None]


class Bank:
    """Pieces of plans for one task, and what makes them better.

    Args:
        base: the plan of no change, which knows the sites. context: what a stored piece depends
            on. cached: looks a measurement up. selection: batches that are not trained on.
        stopped: asked after every step of training, which then goes on next time, and before
            every form's calibration; true ends them.
    """

    def __init__(
        self,
        task: Task,
        capture: Capture,
        base: Plan,
        settings: Settings,
        store: Store,
        voice: Voice,
        context: Mapping[str, Any],
        cached: Cached,
        selection: Sequence[int],
        stopped: Callable[[], bool],
    ) -> None:
        self.task, self.capture, self.base, self.settings = task, capture, base, settings
        self.store, self.voice, self.cached, self.stopped = store, voice, cached, stopped
        self.pieces: dict[tuple[str, str], Piece] = {}
        self.selection = [task.validation[i][0] for i in selection[:WATCHED]]
        self.inputs = task.recovery if len(task.recovery) else list(task.calibration)
        self.context = {
            **context,
            "recover": {
                "budget": settings.recover_budget,
                "rank": settings.recover_rank,
                "seed": settings.seed,
                "watched": len(self.selection),
            },
        }

    def options(self, budget: float) -> DistilOptions:
        """How a stage of ``budget`` seconds is trained."""
        s = self.settings
        return DistilOptions(
            budget=budget, rank=s.recover_rank, seed=s.seed, outputs=self.task.outputs
        )

    def calibrate(self, choices: Sequence[str]) -> dict[str, dict[str, float]]:
        """Fit every (site, choice) to the original activations; returns the errors left.

        Raises:
            KeyboardInterrupt: the run is to stop; the choices fitted so far stay calibrated.
        """
        errors = {}
        with self.voice.stage("calibrate", len(choices)) as step:
            observed = observe(self.capture, list(self.task.calibration))
            for choice in choices:
                if self.stopped():
                    raise KeyboardInterrupt
                plan = self._everywhere(choice)
                errors[choice] = fit_sites(self.capture, plan, observed)
                self._keep(choice, plan)
                step(choice)
        return errors

    def _everywhere(self, choice: str) -> Plan:
        """The plan that has one choice wherever it is legal, with the pieces there are."""
        entries, _ = assign(self.capture.sites, *CHOICES[choice])
        plan = Plan(entries).initialise(self.capture.sites)
        for site in plan.sites:
            self._put(plan, site, choice)
        return plan

    def _keep(self, choice: str, plan: Plan) -> None:
        for site, entry in plan.sites.items():
            if entry.form != "softmax":
                piece = (plan.values.get(site, {}), plan.deltas.get(site, {}))
                self.pieces[site, choice] = piece

    def _put(self, plan: Plan, site: str, choice: str) -> None:
        values, deltas = self.pieces.get((site, choice), ({}, {}))
        if values:
            plan.values[site] = values
        if deltas:
            plan.deltas[site] = deltas

    def plan(self, assignment: Mapping[str, str]) -> Plan:
        """The plan of choices per site, from the pieces; sites not named stay softmax."""
        entries = {}
        for name, entry in self.base.sites.items():
            form, options = CHOICES.get(assignment.get(name, "softmax"), ("softmax", {}))
            entries[name] = Entry(form, options, entry.fits, entry.weights)
        plan = Plan(entries)
        for name, choice in assignment.items():
            self._put(plan, name, choice)
        return plan

    def distil(self, choices: Sequence[str], run: str) -> dict[str, Any]:
        """Distil every (site, choice) locally, those that are not stored; returns what it gave.

        Raises:
            MeasureError: a loss is not finite.
        """
        found = {c: self._stored("bank", c, self._context()) for c in choices}
        missing = [c for c, value in found.items() if value is None]
        # copies: where training fails, the pieces stay calibrated
        plans = {c: self._everywhere(c).copy() for c in missing}
        for plan in plans.values():
            self.capture.use(plan)  # brings what was stored to the model's device
            add_deltas(self.capture, plan, self.options(1.0))
        self.capture.use(None)
        objective = LocalLoss(self.capture, plans)
        if objective.units:
            budget = self.settings.recover_budget * LOCAL
            stage, saved = self._train(objective, budget, " ".join(sorted(missing)))
            for choice, plan in plans.items():
                kept = {tuple(k.split("|")): x for k, x in stage["best"].items()}
                losses = {s: x for (c, s), x in kept.items() if c == choice}
                found[choice] = {
                    "plan": self.store.save_plan(plan),
                    "losses": losses,
                    "steps": stage["steps"],
                    "seconds": stage["seconds"],
                }
                self.store.put("bank", choice, self._context(), found[choice] or {}, run=run)
            saved.remove()
        for choice, value in found.items():
            stored = plans.get(choice) or self.store.plan((value or {}).get("plan", ""))
            if stored is not None:
                self._keep(choice, stored)
        return {c: value for c, value in found.items() if value is not None}

    def room(self, found: Mapping[str, Any]) -> int:
        """How many plans the budget can distil globally, by what ``distil`` returned; 1 or more.

        A global step is taken to be as long as three local ones of one choice.
        """
        local = [x["seconds"] / max(x["steps"], 1) / len(found) for x in found.values()]
        left = self.settings.recover_budget * (1 - LOCAL)
        return max(int(left / (3 * STEPS * max([1e-9, *local]))), 1)

    def recover(self, plan: Plan, share: float, run: str) -> tuple[Plan, dict[str, Any]]:
        """A plan distilled globally in ``share`` of the budget, and what that did.

        Attention that stays softmax learns too.

        Raises:
            MeasureError: the loss is not finite.
        """
        context = {**self._context(), "share": share, "softmax": True}
        value = self._stored("recovered", plan.hash, context)
        stored = None if value is None else self.store.plan(value["plan"])
        if value is not None and stored is not None:
            return stored, value
        better = plan.copy()
        self.capture.use(better)  # to the model's device
        self.capture.use(None)
        add_deltas(self.capture, better, replace(self.options(1.0), softmax=True))
        objective = GlobalLoss(self.task.model, self.capture, better, self.task.outputs, ())
        if not objective.unit.trained:
            return plan, {}
        budget = self.settings.recover_budget * (1 - LOCAL) * share
        value, saved = self._train(objective, budget, plan.hash)
        value["plan"] = self.store.save_plan(better)
        self.store.put("recovered", plan.hash, context, value, run=run)
        saved.remove()
        return better, value

    def _stored(self, kind: str, subject: str, context: dict[str, Any]) -> dict[str, Any] | None:
        value = self.cached(kind, subject, context)
        return None if value is None else {k: v for k, v in value.items() if k != "outcome"}

    def _context(self) -> dict[str, Any]:
        """What a trained piece depends on: data, and how it is trained, among it."""
        if "inputs" not in self.context:
            with seeded(0):
                inputs = [self.inputs[i] for i in range(len(self.inputs))]
            self.context["inputs"] = digest([inputs, list(self.task.calibration)])
            self.context["recovery"] = fingerprint.recovery_digest()
        return self.context

    def _progress(self, step: Callable[[str], None]) -> Progress:
        """Progress of a stage in hundredths; ends it where the run is to stop."""
        told = 0

        def tell(_: str, at: int, total: int, loss: float) -> None:
            nonlocal told
            if self.stopped():
                raise KeyboardInterrupt
            while told < min(100 * at // max(total, 1), 100):
                told += 1
                step(f"loss {loss:.3g}")

        return tell

    def _train(
        self, objective: Objective, budget: float, name: str
    ) -> tuple[dict[str, Any], Checkpoint]:
        """One stage with a checkpoint beside the database; the same command goes on from it.

        The checkpoint is the caller's to remove, when the result is stored.
        """
        key = key_of(objective.name, name, self._context())
        saved = Checkpoint(self.store.path.with_suffix(f".{key[:12]}.distil"), key)
        with self.voice.stage(f"distil, {objective.name}: {name}", 100) as step:
            trainer = Trainer(objective, self.options(budget), 1.0, saved)
            stage = trainer.run(self.inputs, self.selection, self._progress(step))
        return stage.as_dict(), saved
