"""The race: promising plans are distilled, the best of all are chosen and judged on new items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch

from attnpass.errors import CaptureError, MeasureError
from attnpass.tuner.measure import bound, scores
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.candidates import Candidates
from attnpass.tuner.search.distillation import Distillation, distil_plan
from attnpass.tuner.search.finalists import ALPHA, chance, choose
from attnpass.tuner.search.session import Value
from attnpass.tuner.search.settings import REJECTED

LEAST_DISTILLED = 0.1
"""Share of the time for whole plans below which none is distilled: little would be learnt."""

LEAST_GAIN = 0.02
"""Estimated speed-up, minus 1, below which a plan is not distilled."""

REACH = 3
"""How many times the allowed drop a plan may lose before its global distillation."""


def recover_promising(
    candidates: Candidates,
    distillation: Distillation,
    affordable: int,
    amount: float,
    left: Callable[[], float] = lambda: math.inf,
) -> None:
    """Distil the promising plans globally; they become candidates beside what they were.

    In rounds of equal time, each of the better half of the last (successive halving,
    1603.06560): few plans get most of the ``amount``, seconds or steps
    (``Settings.recover_amount``). ``affordable`` plans fit into it in all; fewer plans, and fewer
    seconds, where no more are ``left`` for training them and for scoring what was trained.
    """
    most, budget = candidates.inspection.settings.limits["finalists"], candidates.session.budget
    for count in range(most, 0, -1):
        racing = promising(candidates, count)
        rounds = len(racing).bit_length()
        stages = sum(len(racing) >> i for i in range(rounds))
        granted = min(amount, left() - stages * candidates.baseline.seconds_selection)
        enough = granted >= LEAST_DISTILLED * amount
        fits = len(racing) * rounds * amount <= affordable * granted
        if (enough and fits) or len(racing) <= 1:
            break
    if racing and not enough:
        budget.leave_out("distillation of whole plans")
        return
    if racing:
        budget.shorten("distillation of whole plans", granted, amount)
    while racing:
        share = 1 / rounds / len(racing)
        trained = list[Candidate]()
        for candidate in racing:
            if left() <= 0:
                budget.leave_out("distillation of whole plans, in part")
                return
            trained.append(recovered(candidates, distillation, candidate, share, granted))
        racing = sorted(trained, key=lambda c: worth(candidates, c), reverse=True)
        racing = racing[: len(racing) // 2]


def recovered(
    candidates: Candidates,
    distillation: Distillation,
    candidate: Candidate,
    share: float,
    whole: float,
) -> Candidate:
    """The candidate after global distillation in a share of the ``whole`` amount for plans.

    Where training fails, or nothing in the plan can learn, the candidate itself.
    """
    try:
        found = distil_plan(distillation, candidate.plan, share, whole)
    except (MeasureError, CaptureError, torch.OutOfMemoryError) as error:
        name, say = candidate.plan.hash, candidates.session.progress.say
        say(f"plan {name} not distilled: {error}", style="yellow")
        return candidate
    if found is None:
        return candidate
    plan, recovery = found
    assert candidate.selection is not None
    drop, steps, seconds = candidate.selection.drop, recovery.steps, recovery.seconds
    if candidate.recovery is not None:
        drop = candidate.recovery.drop_before
        steps += candidate.recovery.steps
        seconds += candidate.recovery.seconds
    total = replace(recovery, drop_before=drop, steps=steps, seconds=seconds)
    better = replace(candidates.scored(candidate.assignment, plan), recovery=total)
    candidates.keep(better)
    return better


def worth(candidates: Candidates, candidate: Candidate) -> float:
    """The gain of a plan times the chance that it is proven."""
    return gain(candidates, candidate) * likely(candidates, candidate, 1 - ALPHA)


def gain(candidates: Candidates, candidate: Candidate) -> float:
    """The estimated speed-up of a plan, minus 1."""
    return candidates.base_ms / candidate.cost - 1


def likely(
    candidates: Candidates,
    candidate: Candidate,
    confidence: float,
    corrections: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> float:
    """The chance that the held-out items prove a plan at ``confidence``.

    ``corrections`` are those of some plans by hash, as ``chance`` takes them.
    """
    baseline = candidates.baseline
    if len(candidate.scores) < len(baseline.selection):
        return 0.0
    limits, items = candidates.inspection.limits, len(baseline.held_out)
    known = corrections.get(candidate.plan.hash)
    found = [chance(baseline.selection, candidate.scores, limits[""], items, confidence, known)]
    for m, taken in candidate.more.items():
        found.append(chance(baseline.more[m][0], taken, limits[m], items, confidence))
    return min(found)


def corrections(candidates: Candidates) -> dict[str, tuple[float, float]]:
    """By plan how much its bound is above what its own scores say, and the error that is left.

    Of plans as they were searched, by one metric; what was distilled since has scores of its own.
    """
    effects, known = candidates.effects, candidates.tried.values()
    if not effects or not effects.plans or candidates.baseline.more:
        return {}
    all_told, out = effects.believed(), {}
    for c in known:
        key = tuple(c.assignment[s] for s in effects.sites)
        if c.recovery is None and key in all_told:
            over, error = all_told[key]
            out[c.plan.hash] = over - effects.plans[key][0], error
    return out


def promising(candidates: Candidates, count: int) -> list[Candidate]:
    """Up to ``count`` plans that distillation may bring within the limit, or keep there.

    None that gains less than times can tell. Half of them the fastest that are within; the others
    the fastest of those that do less damage than everything cheaper, before all those that lose
    too much to come back, of which the one that loses least is first.
    """
    told = [c for c in allowed(candidates, None) if gain(candidates, c) >= LEAST_GAIN]
    chosen = told[: count // 2]
    least, front = REJECTED, []
    for c in sorted(candidates.tried.values(), key=_quickest):
        if gain(candidates, c) < LEAST_GAIN:
            continue
        # scores that ended early say that the limit is lost today, not after distillation
        moved = c.divergence if c.divergence < REJECTED else candidates.divergence(c.plan)
        if moved < least:
            least = moved
            front.append(c)
    front.sort(key=lambda c: _beyond_reach(candidates, c))
    return chosen + [c for c in front if c not in chosen][: count - len(chosen)]


def _beyond_reach(candidates: Candidates, candidate: Candidate) -> float:
    """The drop of a plan that loses more than distillation is likely to give back, else 0."""
    assert candidate.selection is not None
    drop = candidate.selection.drop
    return drop if drop > REACH * candidates.inspection.settings.max_drop else 0.0


def _quickest(candidate: Candidate) -> tuple[float, float]:
    """A key to sort by: estimated milliseconds, then damage."""
    return candidate.cost, candidate.divergence


def choose_finalists(candidates: Candidates, affordable: int | None = None) -> list[Candidate]:
    """The plans that promise the largest proven gain, no more than are ``affordable``.

    Where the set is cross-fitted: the fastest that keeps the limit on each half, to be judged
    on the other.
    """
    tried, baseline = list(candidates.tried.values()), candidates.baseline
    if not baseline.split.crossed:
        most = candidates.inspection.settings.limits["finalists"]
        most = most if affordable is None else min(most, affordable)
        told = corrections(candidates)
        return choose(
            tried, lambda c: gain(candidates, c), lambda c, p: likely(candidates, c, p, told), most
        )
    judged: dict[str, list[int]] = {}
    for half in (0, 1):
        for best in allowed(candidates, baseline.half(1 - half))[:1]:
            judged.setdefault(best.plan.hash, []).extend(baseline.half(half))
    chosen = [
        replace(c, judged=tuple(judged[c.plan.hash])) for c in tried if c.plan.hash in judged
    ]
    return sorted(chosen, key=_quickest)


def allowed(candidates: Candidates, items: list[int] | None) -> list[Candidate]:
    """Plans that should be faster and keep the limit on ``items``, fastest first.

    ``None`` is the whole selection.
    """
    baseline, limits = candidates.baseline, candidates.inspection.limits
    base = baseline.selection
    chosen = list(range(len(base))) if items is None else items

    def keeps(c: Candidate) -> bool:
        pairs = [(base, c.scores, limits[""])]
        pairs += [(baseline.more[m][0], x, limits[m]) for m, x in c.more.items()]
        return all(bound(a[chosen], b[chosen]).upper <= limit for a, b, limit in pairs)

    faster = [
        c
        for c in candidates.tried.values()
        if c.cost < candidates.base_ms and len(c.scores) == len(base)
    ]
    kept = [c for c in faster if keeps(c)]
    return sorted(kept, key=_quickest)


def nearest(candidates: Candidates) -> list[Candidate]:
    """Where no plan keeps the limit: those of least bound on the selection, each faster."""
    complete = len(candidates.baseline.selection)
    whole = [c for c in candidates.tried.values() if len(c.scores) == complete]
    out: list[Candidate] = []
    for c in sorted(whole, key=lambda c: (c.selection.upper if c.selection else 1.0, c.cost)):
        if c.cost < (out[-1].cost if out else candidates.base_ms):
            out.append(c)
    return out[: candidates.inspection.settings.limits["finalists"]]


def judge_held_out(candidates: Candidates, finalists: list[Candidate]) -> list[Candidate]:
    """Finalists with their held-out bounds; they share the level (Bonferroni).

    Held-out items are looked at once. Each plan is stored with its numbers.

    Raises:
        KeyboardInterrupt: the run is to stop; ``candidates`` holds those judged so far.
    """
    confidence = 1 - ALPHA / max(len(finalists), 1)
    out = []
    with candidates.session.progress.stage("finalists: held out", len(finalists)) as step:
        for candidate in finalists:
            out.append(_judged(candidates, candidate, confidence))
            candidates.keep(out[-1])
            step(candidate.plan.hash)
    return out


def _judged(candidates: Candidates, candidate: Candidate, confidence: float) -> Candidate:
    """A finalist with the bound that the held-out items give; its plan is stored."""
    inspection, baseline = candidates.inspection, candidates.baseline
    task, capture, plan = inspection.task, inspection.capture, candidate.plan

    def score() -> Value:
        capture.use(plan)
        found = scores(task, capture, baseline.split.held_out, worst=baseline.worst)
        capture.use(None)
        return {k: v for k, v in found.as_dict().items() if k in ("scores", "more")}

    context = {**inspection.context, "batches": list(baseline.split.held_out)}

    def fits(value: Value) -> bool:
        more = value.get("more", {})
        lengths = {len(x) for x in (value.get("scores", []), *more.values())}
        return lengths == {len(baseline.held_out)} and more.keys() == task.metrics.keys()

    value = candidates.session.measured("accuracy", f"held out {plan.hash}", context, score, fits)
    taken = torch.tensor(value["scores"], dtype=torch.float64)
    items = list(candidate.judged) or list(range(len(taken)))
    held_out = bound(baseline.held_out[items], taken[items], confidence)
    # all limits have to be kept: each is tested at the whole level (intersection-union test)
    others = {}
    for m, row in value.get("more", {}).items():
        other = torch.tensor(row, dtype=torch.float64)
        others[m] = bound(baseline.more[m][1][items], other[items], confidence)
    plan.measured = {
        "held_out": held_out.as_dict(),
        "latency": candidate.row.latency_dict(),
        "timing": inspection.timing,
        "baseline_ms": candidates.base_ms,
    }
    candidates.session.store.save_plan(plan)
    return replace(candidate, held_out=held_out, held_others=others)
