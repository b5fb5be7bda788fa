"""The stages of a tuning run, resumable: every measurement is committed before the next begins.

``inspect -> baseline and ceiling -> calibrate -> latency per form (-> distil each site and form)
-> sensitivity -> integer program -> Optuna (-> distil the hopeful plans, rank again) -> finalists
measured together -> held-out``. Running the same command again
continues: what is measured is read from the store, and a mismatch says which field differs.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import environment, fingerprint
from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import CaptureError, MeasureError, TaskError
from attnpass.fingerprint import computation, digest
from attnpass.plan import Plan, assign
from attnpass.report import Report
from attnpass.store import Store, now
from attnpass.task import load_task
from attnpass.torch_internals import pytree
from attnpass.tuner.measure.accuracy import (
    Split,
    answer,
    bound,
    divergence,
    first_tensor,
    needed,
    pooled_scores,
    scores,
    split,
)
from attnpass.tuner.measure.latency import floor, ratio
from attnpass.tuner.measure.worker import Worker
from attnpass.tuner.progress import Voice
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.finalists import ALPHA, chance, choose
from attnpass.tuner.search.integer_program import front, recipes
from attnpass.tuner.search.optuna_search import Outcome, search
from attnpass.tuner.search.pieces import Bank
from attnpass.tuner.search.settings import CHOICES, REJECTED, Settings

REACH = 3
"""How many times the allowed drop a plan may lose before its global distillation."""


class Run:
    """One tuning run over an open store."""

    def __init__(self, settings: Settings, store: Store, voice: Voice) -> None:
        self.settings, self.store, self.voice = settings, store, voice
        self.task = load_task(settings.task)
        self.capture = call(Capture(self.task.model).trace, self.task.example)
        self.sites = self.capture.sites
        if not self.sites:
            why = (
                "; ".join(str(d) for d in self.capture.declined[:3]) or "no softmax in its graphs"
            )
            raise CaptureError(f"expected a model with softmax attention, found none ({why})")
        base = Plan(assign(self.sites, "softmax")[0])
        self.capture.own(base)
        self.base = base
        self.context: dict[str, Any] = {
            "structure": base.structure,
            "program": digest([computation(g.normal) for g in self.capture.graphs]),
            "weights": digest(_tensors(self.task.model)),
            "data": self.task.digest(),
            "kernels": fingerprint.kernels_digest(),
            "protocol": environment.PROTOCOL,
            "torch": torch.__version__,
        }
        self.timing = {
            **self.context,
            **environment.device(self._kind),
            "inner": settings.inner,
            "mode": settings.mode,
            "shapes": environment.shapes(self.task.example),
            "rounds": settings.limits["rounds"],
            "tiles": self._tiles(),
        }
        asked = {k: v for k, v in asdict(settings).items() if k not in ("refresh", "timeout")}
        text = json.dumps([asked, self.timing], sort_keys=True, default=str)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.asked, self.created = asked, now()
        self.found: dict[str, Candidate] = {}
        self.facts: dict[str, Any] = {}
        self.told: set[str] = set()
        self.stopped = False

    @property
    def _kind(self) -> str:
        """The kind of device that the task runs on."""
        leaves = pytree.tree_leaves(self.task.example)
        return "cuda" if any(getattr(x, "is_cuda", False) for x in leaves) else "cpu"

    def _tiles(self) -> str:
        """Digest of the tiles that compiled plans will find."""
        tiles = self.store.tiles(environment.kernel_context(self._kind))
        rows = sorted((k, *t.as_list(), t.implementation) for k, t in tiles.items())
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def table(self) -> Any:
        """The sites found, as a table."""
        return Report(self.sites, self.capture.declined).table()

    def outline(self) -> dict[str, Any]:
        """What would be searched, nothing measured."""
        rows = {
            s.name: [c for c in self.settings.forms if s.legal.get(CHOICES[c][0]) is None]
            for s in self.sites
        }
        size = 1
        for row in rows.values():
            size *= len(row) + 1
        return {
            "run": self.id,
            "task": self.settings.task,
            "sites": rows,
            "space": size,
            "trials": self.settings.limits["trials"],
            "items_needed": needed(self.settings.max_drop),
        }

    def execute(self) -> dict[str, Any]:
        """Run all stages; returns the result, which is also stored.

        On Ctrl-C the best result so far is stored and returned with status ``interrupted``.

        Raises:
            AttnpassError: the task, the model or the store is not usable.
        """
        self._save("running", {})
        try:
            with (
                self._interruptible(),
                Worker(
                    self.settings.task,
                    timeout=self.settings.timeout,
                    inner=self.settings.inner,
                    mode=self.settings.mode,
                    db=str(self.store.path),
                    stopped=lambda: self.stopped,
                ) as worker,
            ):
                self.worker = worker
                self._baseline()
                self._ceiling()
                self._calibrate()
                self._form_latency()
                self._distil()
                self._sensitivity()
                self._search()
                self._recover()
                finalists = self._finalists()
                self._measure(finalists)
                self._judge(finalists)
        except KeyboardInterrupt:
            result = self._result(self._finalists(), "interrupted")
            self._save("interrupted", result)
            return result
        result = self._result(finalists, "done")
        self._save("done", result)
        return result

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C stops before the next measurement, a second one at once.

        Raising in the handler itself is not enough: Python drops what a finaliser raises.
        """

        def stop(*_: object) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # -- baseline ---------------------------------------------------------------------------

    def _baseline(self) -> None:
        """Scores of the unchanged model over all validation items, the split, the reference."""
        value = self._cached("accuracy", "baseline scores", self.context)
        if value is None:
            value = self._score_baseline()
            self.store.put("accuracy", "baseline scores", self.context, value, run=self.id)
        self.sizes = value["sizes"]
        if sum(self.sizes) < 2:
            raise TaskError(f"expected two validation items or more, got {sum(self.sizes)}")
        self.split: Split = split(self.sizes)
        self.base_selection = torch.tensor(value["selection"], dtype=torch.float64)
        self.base_held_out = torch.tensor(value["held_out"], dtype=torch.float64)
        with torch.no_grad():
            self.reference = [
                first_tensor(call(self.capture, self.task.validation[i][0])).double()
                for i in self.split.selection[:4]
            ]
        parts = [self.base_selection] + ([] if self.split.crossed else [self.base_held_out])
        total = torch.cat(parts)
        self.facts |= {
            "items": sum(self.sizes),
            "selection": len(self.base_selection),
            "held_out": len(self.base_held_out),
            "crossed": self.split.crossed,
            "baseline_score": float(total.mean()),
            "provable": needed(self.settings.max_drop),
        }
        self.voice.say(
            f"{self.task.metric} of the unchanged model: {total.mean():.4f} on {len(total)} items;"
            f" a drop of {self.settings.max_drop:.2%} needs at least"
            f" {self.facts['provable']} items to be proven, held out are"
            f" {self.facts['held_out']}" + (" (cross-fitted)" if self.split.crossed else "")
        )

    def _score_baseline(self) -> dict[str, Any]:
        """Items per batch, and scores of the selection and of what is held out."""
        task, every = self.task, range(len(self.task.validation))
        parts: list[Tensor] = []
        with self.voice.stage("baseline accuracy", len(every)) as step:
            for i in every:
                one = answer(task, self.capture, i) if task.pooled else None
                parts.append(scores(task, self.capture, [i])[0] if one is None else one)
                step("")
        sizes = [len(task.validation[i][1]) if task.pooled else len(parts[i]) for i in every]
        halves = split(sizes) if sum(sizes) else Split((), (), True)
        value: dict[str, Any] = {"sizes": sizes}
        for name, batches in (("selection", halves.selection), ("held_out", halves.held_out)):
            taken = [parts[i] for i in batches]
            if task.pooled:
                value[name] = pooled_scores(task, taken, batches).tolist()
            else:
                value[name] = torch.cat(taken).tolist() if taken else []
        return value

    # -- latency ----------------------------------------------------------------------------

    def _ceiling(self) -> None:
        """Compiled baseline, A/A floor, and the two speed-ups that no plan can beat."""
        with self.voice.stage("baseline latency and ceiling", 1) as step:
            times = self._times("ceiling", "ceiling", None)
            step("")
        base, again, softmax, bare, skipped = times
        first, second = ratio(base, softmax), ratio(base, bare)
        third = ratio(base, skipped)
        softer = first.low > 1 + floor(base, again)
        reference = softmax if softer else base
        self.base_ms = _median(reference)
        self.ceiling_ms = _median(bare)
        share = max(0.0, 1 - ratio(reference, bare).median ** -1)
        self.facts |= {
            "baseline_ms": self.base_ms,
            "floor": floor(base, again),
            "baseline": "softmax re-emitted" if softer else "unchanged model, compiled",
            "attention_share": share,
            "ceiling": ratio(reference, bare).median,
            "ceiling_skipat": ratio(reference, skipped).median,
            "softmax_ratio": first.as_dict(),
            "bare_ratio": second.as_dict(),
            "skip_ratio": third.as_dict(),
        }
        self.voice.say(
            f"baseline ({self.facts['baseline']}): {self.base_ms:.2f} ms; two identical runs"
            f" differ by up to {self.facts['floor']:.1%}"
        )
        self.voice.say(
            f"[bold]attention is {share:.0%} of the measured time, no plan can gain more than"
            f" {self.facts['ceiling']:.2f}x[/] (skipat, which drops the projections too:"
            f" {self.facts['ceiling_skipat']:.2f}x)"
        )

    def _times(
        self, kind: str, subject: str, plans: list[Plan | None] | None, *, spare: bool = False
    ) -> list[list[float]]:
        """Interleaved times, from the store or the worker.

        A stored failure is tried again where the run cannot ``spare`` these times, or waits
        longer now.

        Raises:
            MeasureError: the worker could not measure.
        """
        value = self._cached(kind, subject, self.timing)
        if value is not None and value.get("outcome", "ok") != "ok":
            longer = value["outcome"] == "timeout" and value["limit"] < self.settings.timeout
            value = None if longer or not spare else value
        if value is None:
            value = self._ask(plans) | {"limit": self.settings.timeout}
            self.store.put(
                kind, subject, self.timing, value, outcome=value.pop("outcome"), run=self.id
            )
            value = self._cached(kind, subject, self.timing, fresh=True) or value
        if value.get("outcome", "ok") != "ok":
            raise MeasureError(
                f"expected to measure {subject}, got {value['outcome']}: {value.get('why')}"
            )
        return value["times"]  # type: ignore[no-any-return]

    def _ask(self, plans: list[Plan | None] | None) -> dict[str, Any]:
        rounds = self.settings.limits["rounds"]
        if plans is None:
            return self.worker.ceiling(rounds=rounds)
        with tempfile.TemporaryDirectory() as folder:
            files = [
                None if p is None else str(p.save(Path(folder) / f"{i}.json"))
                for i, p in enumerate(plans)
            ]
            reply = self.worker.measure(files, rounds=rounds)
        expected = ["" if p is None else p.hash for p in plans]
        if reply["outcome"] == "ok" and reply["hashes"] != expected:
            return {"outcome": "inaccurate", "why": "another plan ran than was asked for"}
        return reply

    def _form_latency(self) -> None:
        """Milliseconds that each choice saves per site, from the plan that has it everywhere."""
        self.saving: dict[str, float] = {}
        chosen = {
            c: [s.name for s in self.sites if c in self.legal[s.name]] for c in self.settings.forms
        }
        with self.voice.stage("latency per form", len(chosen)) as step:
            for choice, names in chosen.items():
                if names:
                    plan = self.bank.plan(dict.fromkeys(names, choice))
                    try:
                        base, times = self._times("latency", plan.hash, [None, plan], spare=True)
                        saved = self.base_ms * (1 - 1 / ratio(base, times).median)
                        self.saving[choice] = saved / len(names)
                    except MeasureError as error:
                        self.voice.say(f"[yellow]{choice}: {error}[/]")
                step(choice)
        self.facts["saving_ms_per_site"] = dict(self.saving)
        slower = [c for c, s in self.saving.items() if s <= 0]
        self.useful = [c for c, s in self.saving.items() if s > 0]
        if slower:
            self.voice.say(f"no gain here, left out of the search: {', '.join(slower)}")

    # -- accuracy ---------------------------------------------------------------------------

    def _calibrate(self) -> None:
        """Fit every (site, choice) once, to the original activations: the bank's start."""
        self.legal = {
            s.name: [c for c in self.settings.forms if s.legal.get(CHOICES[c][0]) is None]
            for s in self.sites
        }
        watched = () if self.split.crossed else self.split.selection
        self.bank = Bank(
            self.task,
            self.capture,
            self.base,
            self.settings,
            self.store,
            self.voice,
            self.context,
            self._cached,
            watched,
            lambda: self.stopped,
        )
        self.fit = self.bank.calibrate(self.settings.forms)

    def _distil(self) -> None:
        """Distil every useful (site, choice) locally, once."""
        if self.settings.recover != "distil" or not self.useful:
            return
        try:
            self.facts["bank"] = self.bank.distil(self.useful, self.id)
        except MeasureError as error:
            self.voice.say(f"[yellow]not distilled, calibrated only: {error}[/]")
            return
        for choice, value in self.facts["bank"].items():
            worst = max(value["losses"].values(), default=0.0)
            self.voice.say(
                f"{choice}: {value['steps']} steps, blocks off by at most {worst:.0%} of their"
                " output's power"
            )

    def _recover(self) -> None:
        """Distil the hopeful plans globally; they are candidates beside what they were.

        In rounds of equal time, each of the better half of the last (successive halving,
        1603.06560): few plans get most of the budget.
        """
        if self.settings.recover != "distil":
            return
        room = self.bank.room(self.facts.get("bank", {}))
        most = self.settings.limits["finalists"]
        counts = [n for n in range(2, most + 1) if n * n.bit_length() <= room]
        racing = self._hopeful(max(counts, default=1))
        rounds = len(racing).bit_length()
        while racing:
            share = 1 / rounds / len(racing)
            racing = [self._distilled(c, share) for c in racing]
            racing = sorted(racing, key=self._worth, reverse=True)[: len(racing) // 2]

    def _distilled(self, candidate: Candidate, share: float) -> Candidate:
        """The candidate after global distillation in a share of the budget."""
        try:
            plan, value = self.bank.recover(candidate.plan, share, self.id)
        except MeasureError as error:
            self.voice.say(f"[yellow]plan {candidate.plan.hash} not distilled: {error}[/]")
            return candidate
        if not value:
            return candidate
        assert candidate.selection is not None
        before = candidate.recovery or {"drop_before": candidate.selection.drop}
        better = self._judged(candidate.assignment, plan)
        better.recovery = {**value, "drop_before": before["drop_before"]}
        for name in ("steps", "seconds"):
            better.recovery[name] += before.get(name, 0)
        return better

    def _worth(self, candidate: Candidate) -> float:
        """What a plan gains times the chance that it is proven."""
        return self._gain(candidate) * self._likely(candidate, 1 - ALPHA)

    def _gain(self, candidate: Candidate) -> float:
        return self.base_ms / candidate.cost - 1

    def _likely(self, candidate: Candidate, confidence: float) -> float:
        """The chance that the held-out items prove a plan at ``confidence``."""
        if len(candidate.scores) < len(self.base_selection):
            return 0.0
        return chance(
            self.base_selection,
            candidate.scores,
            self.settings.max_drop,
            len(self.base_held_out),
            confidence,
        )

    def _hopeful(self, count: int) -> list[Candidate]:
        """Plans that distillation may bring within the limit, or keep there.

        Half of them the fastest that are within; the others the fastest of those that do less
        damage than everything cheaper, before all those that are within its reach.
        """
        chosen = self._allowed(None)[: count // 2]
        least, front = REJECTED, []
        for c in sorted(self.found.values(), key=_quickest):
            if c.cost < self.base_ms and c.latency["divergence"] < least:
                least = c.latency["divergence"]
                front.append(c)
        front.sort(key=self._far)
        return chosen + [c for c in front if c not in chosen][: count - len(chosen)]

    def _far(self, candidate: Candidate) -> bool:
        """Whether a plan loses more than distillation is likely to give back."""
        assert candidate.selection is not None
        return candidate.selection.drop > REACH * self.settings.max_drop

    def _candidate(self, assignment: dict[str, str]) -> Candidate:
        """A plan with its measured selection scores, from the store or measured now."""
        full = {s.name: assignment.get(s.name, "softmax") for s in self.sites}
        return self._judged(full, self.bank.plan(full))

    def _judged(self, full: dict[str, str], plan: Plan) -> Candidate:
        """A plan with its selection scores, from the store or measured now."""
        cost = self.base_ms - sum(self.saving.get(c, 0.0) for c in full.values())
        plan.made_by = {"run": self.id, "versions": environment.versions()}
        known = self.found.get(plan.hash)
        if known is not None:
            return known
        value = self._cached("accuracy", plan.hash, self._selection_context())
        if value is None:
            self.capture.use(plan)
            found, complete = scores(
                self.task,
                self.capture,
                self.split.selection,
                base=self.base_selection,
                max_drop=0.25,
            )
            self.capture.use(None)
            value = {"scores": found.tolist(), "complete": complete}
            self.store.put("accuracy", plan.hash, self._selection_context(), value, run=self.id)
        candidate = Candidate(full, plan, cost)
        taken = torch.tensor(value["scores"], dtype=torch.float64)
        candidate.scores = taken
        candidate.selection = bound(self.base_selection[: len(taken)], taken)
        moved = self._divergence(plan) if value["complete"] else REJECTED
        candidate.latency = {"divergence": moved}
        self.found[plan.hash] = candidate
        return candidate

    def _divergence(self, plan: Plan) -> float:
        """How far a plan moves the first outputs, from the store or measured now."""
        context = {**self.context, "batches": list(self.split.selection[:4])}
        value = self._cached("divergence", plan.hash, context)
        if value is None:
            self.capture.use(plan)
            moved = divergence(self.task, self.capture, self.reference, context["batches"])
            self.capture.use(None)
            value = {"divergence": moved if math.isfinite(moved) else REJECTED}
            self.store.put("divergence", plan.hash, context, value, run=self.id)
        return float(value["divergence"])

    def _selection_context(self) -> dict[str, Any]:
        return {**self.context, "batches": list(self.split.selection)}

    def _sensitivity(self) -> None:
        """How far every useful (site, choice) alone moves the outputs."""
        pairs = [(s.name, c) for s in self.sites for c in self.legal[s.name] if c in self.useful]
        self.damage: dict[str, dict[str, float]] = {s.name: {"softmax": 0.0} for s in self.sites}
        with self.voice.stage("sensitivity", len(pairs)) as step:
            for site, choice in pairs:
                self.damage[site][choice] = self._divergence(self.bank.plan({site: choice}))
                step(f"{site} {choice}")

    def _search(self) -> None:
        """Integer program, recipes, then Optuna."""
        saving = {
            site: {c: self.saving.get(c, 0.0) for c in row} for site, row in self.damage.items()
        }
        seeds: list[dict[str, str]] = [dict.fromkeys(self.damage, "softmax")]
        seeds += [dict(plan) for plan in front(self.damage, saving)]
        names = [s.name for s in self.sites]
        seeds += recipes(
            names, {s: [c for c in row if c != "softmax"] for s, row in self.damage.items()}
        )
        alone = sorted(
            (moved, site, choice)
            for site, row in self.damage.items()
            for choice, moved in row.items()
            if choice != "softmax"
        )
        seeds += [{**seeds[0], site: choice} for _, site, choice in alone[:3]]
        trials = self.settings.limits["trials"]
        space = {site: list(row) for site, row in self.damage.items()}
        if all(len(choices) == 1 for choices in space.values()):
            return
        with self.voice.stage("search", trials) as step:

            def evaluate(plan: dict[str, str]) -> Outcome:
                if plan == seeds[0]:
                    unchanged = bound(self.base_selection, self.base_selection)
                    return Outcome(self.base_ms, unchanged.upper - self.settings.max_drop)
                found = self._candidate(plan)
                assert found.selection is not None
                step(f"{found.cost:.1f} ms, {found.selection.score:.3f}")
                return Outcome(found.cost, found.selection.upper - self.settings.max_drop)

            search(space, evaluate, seeds, trials=trials, seed=self.settings.seed)

    # -- the end ----------------------------------------------------------------------------

    def _finalists(self) -> list[Candidate]:
        """The plans that promise the largest proven gain.

        Where the set is cross-fitted: the fastest that keeps the limit on each half, to be judged
        on the other.
        """
        if not hasattr(self, "base_ms"):
            return []
        if self.split.crossed:
            judged: dict[str, list[int]] = {}
            for half in (0, 1):
                for best in self._allowed(self._items(1 - half))[:1]:
                    judged.setdefault(best.plan.hash, []).extend(self._items(half))
            for candidate in self.found.values():
                candidate.judged = judged.get(candidate.plan.hash, [])
            return sorted((c for c in self.found.values() if c.judged), key=_quickest)
        plans = list(self.found.values())
        return choose(plans, self._gain, self._likely, self.settings.limits["finalists"])

    def _allowed(self, items: list[int] | None) -> list[Candidate]:
        """Plans that should be faster and keep the limit on ``items``, fastest first.

        ``None`` is the whole selection.
        """
        out = []
        for c in self.found.values():
            if c.cost >= self.base_ms or len(c.scores) < len(self.base_selection):
                continue
            at = list(range(len(c.scores))) if items is None else items
            upper = bound(self.base_selection[at], c.scores[at]).upper
            if upper <= self.settings.max_drop:
                out.append(c)
        return sorted(out, key=_quickest)

    def _nearest(self) -> list[Candidate]:
        """Where no plan keeps the limit: those of least bound on the selection, each faster."""
        out: list[Candidate] = []
        whole = [c for c in self.found.values() if len(c.scores) == len(self.base_selection)]
        for c in sorted(whole, key=lambda c: (c.selection.upper if c.selection else 1.0, c.cost)):
            if c.cost < (out[-1].cost if out else self.base_ms):
                out.append(c)
        return out[: self.settings.limits["finalists"]]

    def _items(self, half: int) -> list[int]:
        """Positions of the items of every other batch; where there is one batch, every other."""
        owner = [i for i, size in enumerate(x for x in self.sizes if x) for _ in range(size)]
        owner = owner if owner[-1] else list(range(len(owner)))
        return [at for at, batch in enumerate(owner) if batch % 2 == half]

    def _measure(self, finalists: list[Candidate]) -> None:
        """The finalists' latency, interleaved with the baseline, twice, in one process.

        Where that fails, one after the other; those that fail are left out.

        Raises:
            MeasureError: none of them could be measured.
        """
        if not finalists:
            return
        groups, floors, bases = [list(finalists)], list[float](), list[float]()
        with self.voice.stage("finalists: latency", 1) as step:
            while groups:
                group = groups.pop()
                subject = "finalists " + " ".join(c.plan.hash for c in group)
                plans = [None, None, *(c.plan for c in group)]
                try:
                    times = self._times("latency", subject, plans, spare=len(group) > 1)
                except MeasureError as error:
                    groups += [[c] for c in group] if len(group) > 1 else []
                    if not (groups or bases):
                        raise
                    self.voice.say(f"[yellow]{error}[/]")
                    continue
                base, again, *rest = times
                floors.append(floor(base, again))
                bases.append(_median(base))
                for candidate, series in zip(group, rest, strict=True):
                    found = {"ms": _median(series), "ratio": ratio(base, series).as_dict()}
                    candidate.latency |= found
            step("")
        finalists[:] = [c for c in finalists if "ratio" in c.latency]
        self.facts |= {"finalists_floor": max(floors), "baseline_ms": _median(bases)}

    def _judge(self, finalists: list[Candidate]) -> None:
        """Held-out scores, looked at once; the finalists share the level (Bonferroni)."""
        context = {**self.context, "batches": list(self.split.held_out)}
        base = self.base_held_out
        confidence = 1 - ALPHA / max(len(finalists), 1)
        with self.voice.stage("finalists: held out", len(finalists)) as step:
            for candidate in finalists:
                subject = f"held out {candidate.plan.hash}"
                value = self._cached("accuracy", subject, context)
                if value is None:
                    self.capture.use(candidate.plan)
                    found, _ = scores(self.task, self.capture, self.split.held_out)
                    self.capture.use(None)
                    value = {"scores": found.tolist()}
                    self.store.put("accuracy", subject, context, value, run=self.id)
                taken = torch.tensor(value["scores"], dtype=torch.float64)
                at = candidate.judged or list(range(len(taken)))
                candidate.held_out = bound(base[at], taken[at], confidence)
                candidate.plan.measured = {
                    "held_out": candidate.held_out.as_dict(),
                    "latency": candidate.latency,
                    "timing": self.timing,
                    "baseline_ms": self.base_ms,
                }
                self.store.save_plan(candidate.plan)
                step(candidate.plan.hash)

    def _result(self, finalists: list[Candidate], status: str) -> dict[str, Any]:
        """What is stored, printed and returned."""
        limit, floor_ = self.settings.max_drop, self.facts.get("finalists_floor", 0.0)
        kept = [
            c
            for c in finalists
            if c.held_out is not None
            and c.held_out.upper <= limit
            and c.latency.get("ratio", {}).get("low", 0) > 1 + floor_
        ]
        kept.sort(key=lambda c: -c.latency["ratio"]["median"])
        rows = sorted(finalists, key=lambda c: -c.latency.get("ratio", {}).get("median", 0.0))
        return {
            "run": self.id,
            "status": status,
            "task": self.settings.task,
            "created": self.created,
            "metric": self.task.metric,
            "settings": self.asked,
            "facts": self.facts,
            "device": environment.device(self._kind),
            "versions": environment.versions(),
            "sites": [s.as_dict() for s in self.sites],
            "declined": [d.as_dict() for d in self.capture.declined],
            "sensitivity": getattr(self, "damage", {}),
            "fit": getattr(self, "fit", {}),
            "tried": len(self.found),
            "front": [c.as_dict() for c in rows],
            "nearest": [] if rows else [c.as_dict() for c in self._nearest()],
            "best": kept[0].plan.hash if kept else None,
        }

    def _save(self, status: str, result: dict[str, Any]) -> None:
        known = self.store.run(self.id)
        self.created = known["created"] if known else self.created
        self.store.save_run(
            {
                "id": self.id,
                "created": self.created,
                "task": self.settings.task,
                "status": status,
                "settings": self.asked,
                "context": self.timing,
                "result": json.dumps(result, default=str) if result else None,
            }
        )

    def _cached(
        self, kind: str, subject: str, context: dict[str, Any], *, fresh: bool = False
    ) -> dict[str, Any] | None:
        """A stored measurement; a miss that had a near hit says which field differs."""
        if self.stopped:
            raise KeyboardInterrupt
        if self.settings.refresh and not fresh:
            return None
        value, why = self.store.get(kind, subject, context)
        if value is None and why not in ("never measured", "", *self.told):
            self.told.add(why)
            self.voice.say(f"[dim]measuring again what is stored: {why}[/]")
        return value


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    held = [x for m in model.modules() for x in vars(m).values() if isinstance(x, Tensor)]
    return [*model.parameters(), *model.buffers(), *held]


def _quickest(candidate: Candidate) -> tuple[float, float]:
    """A key to sort by: estimated milliseconds, then damage."""
    return candidate.cost, candidate.latency["divergence"]


def _median(times: Sequence[float]) -> float:
    ordered = sorted(times)
    return ordered[len(ordered) // 2]
