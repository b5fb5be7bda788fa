"""The plans of a run and their accuracy on the selection; each plan is scored once.

First every useful (site, choice) alone (its damage), then whole plans: from the integer program,
the papers' recipes, and proposals by what was learned of effects and by Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from attnpass import environment
from attnpass.memory import free_bytes
from attnpass.plan import Plan
from attnpass.tuner.measure import (
    Rejection,
    bound,
    by_batch,
    divergence,
    mean_move,
    moved,
    positions,
    scores,
)
from attnpass.tuner.search.baseline import REFERENCES, Baseline
from attnpass.tuner.search.budget import STAGE, Budget
from attnpass.tuner.search.canary import score_difference, take
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.finalists import standard_error
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.integer_program import front, recipes
from attnpass.tuner.search.learned import Effects
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.session import NotReproducedError, Session, Value
from attnpass.tuner.search.settings import REJECTED
from attnpass.tuner.search.speed import Savings

FEW = 16
"""Items that tell a damage at least, where there is no time for all of the reference batches."""

HOPELESS, TIMES = 0.05, 3.0
"""The scoring of a plan is stopped where it must drop more than this, and than so many times the
allowed drop: recovery is not likely to give back more."""

CPU = torch.device("cpu")

Damage = Mapping[str, Mapping[str, float]]
"""Per site and choice how far this choice alone moves the outputs; 0 for softmax."""


class Candidates:
    """The plans that were tried, by hash, and the means to score another one.

    Args:
        base_ms: the baseline's latency. savings: what each choice saves of it per site.
        batches: how many of the reference batches tell a divergence, the first ones.
    """

    def __init__(
        self,
        inspection: Inspection,
        session: Session,
        baseline: Baseline,
        library: PieceLibrary,
        base_ms: float,
        savings: Savings,
        batches: int = REFERENCES,
    ) -> None:
        self.batches = batches
        self.inspection, self.session, self.baseline = inspection, session, baseline
        self.library, self.base_ms, self.savings = library, base_ms, savings
        self.tried: dict[str, Candidate] = {}
        self.effects: Effects | None = None
        limit = max(HOPELESS, TIMES * inspection.settings.max_drop)
        selection = baseline.split.selection
        by = by_batch(baseline.selection, baseline.sizes, selection)
        self.rejection = Rejection(by, limit, inspection.settings.seed)
        self.positions = positions(baseline.sizes, selection)

    def sharing(self) -> AbstractContextManager[None]:
        """Inside, what plans have in common is computed once, in a quarter of the free memory."""
        device = next((x.device for x in self.inspection.task.model.parameters()), CPU)
        return self.inspection.capture.sharing(free_bytes(device) // 4)

    def of(self, assignment: Mapping[str, str]) -> Candidate:
        """The plan of choices per site, made of the pieces, with its selection scores."""
        full = {s.name: assignment.get(s.name, "softmax") for s in self.inspection.sites}
        return self.scored(full, self.library.plan(full))

    def keep(self, candidate: Candidate) -> None:
        """Replace what is known of a plan, and tell the observers."""
        self.tried[candidate.plan.hash] = candidate
        self.session.observers.judged(candidate.row)

    def scored(self, assignment: dict[str, str], plan: Plan) -> Candidate:
        """A plan with its selection scores, from the store or measured now."""
        plan.made_by = {"run": self.inspection.run, "versions": environment.versions()}
        known = self.tried.get(plan.hash)
        if known is not None:
            return known
        base, limits = self.baseline.selection, self.inspection.limits
        context = {**self.inspection.context, "batches": list(self.baseline.split.selection)}
        value = self.session.find("accuracy", plan.hash, context, fits=self._fits)
        if value is None:
            value = self._score(plan)
            self.session.keep("accuracy", plan.hash, context, value)
        elif not self.session.verified:
            self._verify(plan, value)
        self.rejection.note(self._by_batch(value))  # in the same order when a run goes on
        taken = torch.tensor(value["scores"], dtype=torch.float64)
        same = base[[i for b in value["batches"] for i in self.positions[b]]]
        more = {m: torch.tensor(x, dtype=torch.float64) for m, x in value.get("more", {}).items()}
        whole = {m: x for m, x in more.items() if value["complete"]}
        candidate = Candidate(
            assignment,
            plan,
            cost=self.savings.left(self.base_ms, assignment.values()),
            scores=taken,
            selection=bound(same, taken),
            more=whole,
            others={m: bound(self.baseline.more[m][0], x) for m, x in whole.items()},
            limits=limits,
            divergence=self.divergence(plan) if value["complete"] else REJECTED,
        )
        self.keep(candidate)
        return candidate

    def divergence(self, plan: Plan) -> float:
        """How far a plan moves the first outputs, from the store or measured now."""
        value = self.session.measured(
            "divergence", plan.hash, self._first_outputs, lambda: self._diverge(plan)
        )
        return float(value["divergence"])

    def _fits(self, value: Value) -> bool:
        """Whether stored scores are of all items, or of enough to stop here as well."""
        if not {"scores", "complete", "batches"} <= value.keys():
            return False
        batches, found, more = value["batches"], len(value["scores"]), value.get("more", {})
        if not set(batches) <= self.positions.keys() or more.keys() != self.baseline.more.keys():
            return False
        wanted = sum(len(self.positions[b]) for b in batches)
        whole = value["complete"] == (len(batches) == len(self.positions))
        sized = 0 < found == wanted and whole and all(len(x) == found for x in more.values())
        return sized and (value["complete"] or self.rejection(self._by_batch(value)))

    def _by_batch(self, value: Value) -> dict[int, Tensor]:
        """Stored scores by batch."""
        sizes = [len(self.positions[b]) for b in value["batches"]]
        parts = torch.tensor(value["scores"], dtype=torch.float64).split(sizes)
        return dict(zip(value["batches"], parts, strict=True))

    def _verify(self, plan: Plan, value: Value) -> None:
        """Compare the first stored scores of a plan with those of now, on the canary's items.

        Raises:
            NotReproducedError: a score is another one.
        """
        task, capture, baseline = self.inspection.task, self.inspection.capture, self.baseline
        stored, items = value["scores"], baseline.canary_items
        if not value["complete"]:
            return  # its scoring was stopped early
        capture.use(plan)
        now = take(task, capture, baseline.canary.batches)
        capture.use(None)
        differs = score_difference([stored[i] for i in items], now.scores, items, now.noise)
        if differs:
            raise NotReproducedError(f"stored scores of this task are not reproduced ({differs})")
        self.session.verified = True

    def _score(self, plan: Plan) -> Value:
        capture, baseline, task = self.inspection.capture, self.baseline, self.inspection.task
        pairs = zip(baseline.reference_batches, baseline.reference, strict=True)
        reference = dict(list(pairs)[: self.batches])
        moves = list[tuple[float, float]]()

        def seen(batch: int, output: Any) -> None:
            if batch in reference:
                moves.append(moved(task, output, reference[batch]))

        capture.use(plan)
        found = scores(
            task,
            capture,
            baseline.split.selection,
            worst=baseline.worst,
            rejection=self.rejection,
            seen=seen,
        )
        capture.use(None)
        if len(moves) == len(reference):  # else it was rejected, or its items are judged together
            value = _divergence(mean_move(moves))
            self.session.measured("divergence", plan.hash, self._first_outputs, lambda: value)
        return found.as_dict()

    @property
    def _first_outputs(self) -> dict[str, Any]:
        """All that a divergence depends on."""
        batches = self.baseline.reference_batches[: self.batches]
        return {**self.inspection.context, "batches": batches}

    def _diverge(self, plan: Plan) -> Value:
        task, capture, baseline = self.inspection.task, self.inspection.capture, self.baseline
        reference = baseline.reference[: self.batches]
        names = baseline.reference_batches[: self.batches]
        capture.use(plan)
        found = divergence(task, capture, reference, names)
        capture.use(None)
        return _divergence(found)


def _divergence(found: float) -> Value:
    """How far a plan moves the first outputs, as it is stored."""
    return {"divergence": found if math.isfinite(found) else REJECTED}


def damage_to_measure(
    baseline: Baseline, budget: Budget, legal: Mapping[str, Sequence[str]], savings: Savings
) -> tuple[list[str], int]:
    """The useful choices that a run can judge, the greatest savings first, and by which batches.

    Where all of them at every site by all reference batches would take more than a stage's share
    of the budget, few items tell the damage, and of no more choices than there is time for. The
    number is of reference batches, the first ones.
    """
    pairs = _to_judge(legal, savings)
    useful = list(dict.fromkeys(c for _, c in pairs))
    seconds = baseline.seconds_reference
    sizes = [baseline.sizes[i] for i in baseline.reference_batches]
    if sum(seconds) * len(pairs) <= STAGE * budget.seconds:
        return useful, REFERENCES
    some = [i for i in range(1, len(sizes)) if sum(sizes[:i]) >= FEW]
    batches = min(some, default=len(sizes))
    each = max(sum(seconds[:batches]), 1e-9)
    most = max(2 * len(legal), int(STAGE * budget.seconds / each))
    left_out = dict.fromkeys(c for _, c in pairs[most:])
    if left_out:
        budget.leave_out(f"sensitivity: {', '.join(left_out)}")
    return [c for c in useful if c not in left_out], batches


def _to_judge(legal: Mapping[str, Sequence[str]], savings: Savings) -> list[tuple[str, str]]:
    """Every site with every useful choice that is legal there, the greatest savings first."""
    useful = sorted(savings.useful, key=savings.of, reverse=True)
    return [(site, c) for c in useful for site, choices in legal.items() if c in choices]


def measure_damage(
    candidates: Candidates, reserve: Callable[[], float] = lambda: 0.0
) -> Iterator[Damage]:
    """How far every useful (site, choice) alone moves the outputs; yields after each.

    It ends early, but after one, where the budget has less left than the ``reserve``.

    Raises:
        KeyboardInterrupt: the run is to stop.
    """
    legal, budget = candidates.inspection.legal, candidates.session.budget
    pairs = _to_judge(legal, candidates.savings)
    damage = {site: {"softmax": 0.0} for site in legal}
    yield damage
    with candidates.session.progress.stage("sensitivity", len(pairs)) as step:
        for i, (site, choice) in enumerate(pairs):
            if i and budget.left < reserve():
                rest = dict.fromkeys(c for _, c in pairs[i:])
                budget.leave_out(f"sensitivity: {', '.join(rest)}")
                return
            moved = candidates.divergence(candidates.library.plan({site: choice}))
            damage = {**damage, site: {**damage[site], choice: moved}}
            step(f"{site} {choice}")
            yield damage


class Told:
    """What effects are told of a plan: the bound on its drop, over that of the unchanged model.

    Attributes:
        room: the bound that is allowed, over that of the unchanged model; not above 0 where no
            plan can keep the limits.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.limits, self.rejection = candidates.inspection.limits, candidates.rejection
        baseline = candidates.baseline
        self.items = len(baseline.selection)
        bases = {"": baseline.selection, **{m: x[0] for m, x in baseline.more.items()}}
        self.same = {m: bound(x, x).upper for m, x in bases.items()}
        rooms = {m: self.limits[m] - same for m, same in self.same.items()}
        self.room = rooms[""] if min(rooms.values()) > 0 else 0.0

    def of(self, candidate: Candidate) -> tuple[float, float]:
        """The bound, by the metric that is worst, as a drop of the first; its standard error."""
        assert candidate.selection is not None
        drop, share = candidate.selection.drop, len(candidate.scores) / self.items
        if share < 1 and self.rejection.exact:
            # scored on the hardest items alone: the others lose between nothing and as much
            return drop * share, drop * (1 - share)
        bounds = {"": candidate.selection, **candidate.others}
        shares = [
            (x.upper - self.same[m]) / (self.limits[m] - self.same[m]) for m, x in bounds.items()
        ]
        return self.room * max(shares), standard_error(candidate.selection)


class OutOfTimeError(Exception):
    """The search has to leave the rest of its time to the stages after it."""


def search_plans(
    candidates: Candidates, damage: Damage, reserve: Callable[[], float] = lambda: 0.0
) -> None:
    """Score the plans of the integer program, the recipes, then those that are proposed.

    Fewer where the budget has less left than the ``reserve``, the seconds that the finalists need,
    but one in any case.

    Raises:
        KeyboardInterrupt: the run is to stop; ``candidates`` holds the plans scored so far.
    """
    # imported late: showing results needs no optuna
    from attnpass.tuner.search.optuna_search import Outcome, search

    space = {site: list(row) for site, row in damage.items()}
    if all(len(choices) == 1 for choices in space.values()):
        return
    settings, base = candidates.inspection.settings, candidates.baseline.selection
    budget, unchanged = candidates.session.budget, dict.fromkeys(damage, "softmax")
    same, told = bound(base, base), Told(candidates)
    if told.room > 0:
        per_site = candidates.savings.per_site
        candidates.effects = Effects(damage, per_site, told.room, settings.seed)
    effects = candidates.effects
    with candidates.session.progress.stage("search", settings.limits["trials"]) as step:

        def evaluate(assignment: dict[str, str]) -> Outcome:
            if budget.left < reserve() and (candidates.tried or not budget.left):
                raise OutOfTimeError
            if assignment == unchanged:
                return Outcome(candidates.base_ms, same.upper - settings.max_drop)
            found = candidates.of(assignment)
            assert found.selection is not None
            if effects:
                effects.tell(assignment, *told.of(found))
            step(f"{found.cost:.1f} ms, {found.selection.score:.3f}")
            late = found.cost / settings.max_ms - 1 if settings.max_ms else -1.0
            return Outcome(found.cost, max(found.excess, late))

        seeds = first_plans(damage, candidates.savings)
        trials = settings.limits["trials"]
        try:
            search(space, evaluate, seeds, trials=trials, seed=settings.seed, effects=effects)
        except OutOfTimeError:
            done = len(candidates.tried)
            budget.leave_out(f"search: {done} plans scored, {trials} were allowed")


def first_plans(damage: Damage, savings: Savings) -> list[dict[str, str]]:
    """The first plans: unchanged, the integer program's, the recipes, single converted sites."""
    saving = {site: {c: savings.of(c) for c in row} for site, row in damage.items()}
    unchanged = dict.fromkeys(damage, "softmax")
    changes = {s: [c for c in row if c != "softmax"] for s, row in damage.items()}
    alone = sorted((damage[s][c], s, c) for s, choices in changes.items() for c in choices)
    return [
        unchanged,
        *(dict(plan) for plan in front(damage, saving)),
        *recipes(list(damage), changes),
        *({**unchanged, site: choice} for _, site, choice in alone[:3]),
    ]
