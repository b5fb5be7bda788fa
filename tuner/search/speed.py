"""Latency in a run: the baseline and its ceiling, the saving per form, and the finalists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from attnpass.errors import MeasureError
from attnpass.plan import Plan, assign
from attnpass.tuner.measure import Ratio, median_ms, percentile_ms
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.ceiling import CALL_S, GAIN, Ceiling
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.plan_row import PlanLatency
from attnpass.tuner.search.session import Value
from attnpass.tuner.search.stored import conforms
from attnpass.tuner.search.timed import Timed

THREADS_MS = 4000.0
"""About so many milliseconds are spent on each number of threads."""


@dataclass(frozen=True)
class ThreadCount:
    """The unchanged model with some number of threads: its median, and two identical runs."""

    threads: int
    ms: float
    floor: float


def compare_threads(latencies: Latencies, ceiling: Ceiling) -> list[ThreadCount]:
    """The model as it is served beside one thread, and the advice that follows."""
    served, progress = torch.get_num_threads(), latencies.session.progress
    if served == 1 or latencies.inspection.kind != "cpu":
        return []
    call_ms = 1e3 * CALL_S if latencies.items else ceiling.base_ms
    rounds = min(15, max(3, int(THREADS_MS / 2 / call_ms)))

    def take() -> Value:
        rows = []
        with progress.stage("threads", 2) as step:
            for count in (served, 1):
                timed = latencies.of_threads(count, rounds)
                rows.append([count, median_ms(timed.times[0]), timed.floor or 0.0])
                step(f"{count}")
        return {"rows": rows}

    timing, session = latencies.timing, latencies.session
    try:
        value = session.measured("threads", "threads", timing, take, fits=_is_pair)
    except MeasureError as error:
        progress.say(f"threads: {error}", style="yellow")
        return []
    found = [ThreadCount(int(count), ms, noise) for count, ms, noise in value["rows"]]
    many, one = found
    of = f" of {latencies.items} items" if latencies.items else ""
    if one.ms <= many.ms or (many.floor > NOISY and one.floor < many.floor / 2):
        progress.say(
            f"1 thread is steadier here: OMP_NUM_THREADS=1 (two identical runs differ by"
            f" {one.floor:.1%} instead of {many.floor:.1%}; {one.ms:.1f} ms a call{of}, with"
            f" {served} threads {many.ms:.1f})",
            style="yellow",
        )
    return found


def _is_pair(value: Value) -> bool:
    """Whether a stored comparison is of two numbers of threads."""
    return conforms(value.get("rows"), list[list[float]]) and [*map(len, value["rows"])] == [3, 3]


NOISY = 0.03
"""Two identical runs that differ by more are worth advice."""


@dataclass(frozen=True)
class Savings:
    """Milliseconds that each choice saves per site, negative where it is slower.

    Attributes:
        per_site: the median; where it is not decided whether a choice saves anything, the most
            that it may save. ratios: the baseline over the plan that has it at every legal site.
        slower: choices that were proven to gain nothing. undecided: those that noise hides.
        least_ms: the latency that no plan can beat.
    """

    per_site: Mapping[str, float]
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    slower: Sequence[str] = ()
    undecided: Sequence[str] = ()
    least_ms: float = 0.0

    @property
    def useful(self) -> list[str]:
        """The choices that may make the model faster."""
        return [c for c, saved in self.per_site.items() if c not in self.slower and saved > 0]

    def only(self, choices: Iterable[str]) -> Savings:
        """The same of some choices."""
        kept = set(choices)
        return replace(self, per_site={c: x for c, x in self.per_site.items() if c in kept})

    def of(self, choice: str) -> float:
        """Milliseconds of one choice, 0 for softmax and for choices that were not measured."""
        return self.per_site.get(choice, 0.0)

    def left(self, base_ms: float, choices: Iterable[str]) -> float:
        """The milliseconds of a plan with these choices, never less than a plan can have."""
        return max(self.least_ms, base_ms - sum(self.of(c) for c in choices))


def measure_savings(latencies: Latencies, library: PieceLibrary, ceiling: Ceiling) -> Savings:
    """The saving of each choice over the baseline, from the plan that has it at every legal site.

    A choice is left out where its whole interval says that it gains nothing, under a narrow
    floor; a saving that the ceiling makes impossible is noise. What a form costs does not depend
    on its parameters' values: pieces that are not calibrated yet have those that they start from.
    """
    inspection, progress = latencies.inspection, latencies.session.progress
    forms, legal = dict.fromkeys(inspection.settings.forms), inspection.legal
    base_ms, saved, ratios = ceiling.base_ms, dict[str, float](), dict[str, Ratio]()
    slower, undecided = list[str](), list[str]()
    exact = Plan(assign(inspection.sites, "softmax")[0]) if ceiling.softer else None
    over = " over lossless" if ceiling.softer else ""
    names = {c: [site for site, row in legal.items() if c in row] for c in forms}
    asked = {c: at for c, at in names.items() if at}
    hopeless = [c for c in asked if not ceiling.allows(form_of(c)[0])]
    if hopeless:
        progress.say(f"no gain possible, not timed: {', '.join(hopeless)}")
    timed_first = sorted((c for c in asked if c not in hopeless), key=promise)
    plans, untimed = {c: library.everywhere(c) for c in timed_first}, list[str]()
    subjects = {plan.hash + over: (choice, plan) for choice, plan in plans.items()}
    timings = {subject: plan for subject, (_, plan) in subjects.items()}
    with progress.stage("latency per form", len(plans)) as step:
        for subject, timed in latencies.each(timings, exact):
            choice, _ = subjects[subject]
            step(choice)
            if isinstance(timed, MeasureError):
                progress.say(f"{choice}: {timed}", style="yellow")
                if latencies.left() <= 0:
                    untimed.append(choice)
                continue
            found = ratios[choice] = timed.ratio(2)
            possible = found.low <= ceiling.most or not ceiling.reliable
            decided = timed.reliable and possible and not found.low <= 1 <= found.high
            gainless = found.high < 1 + GAIN and timed.reliable
            if gainless and _is_so(latencies, subject, [exact, exact, timings[subject]]):
                slower.append(choice)
            elif not decided:
                undecided.append(choice)
            gain = found.high if choice in undecided else found.median
            saved[choice] = base_ms * (1 - 1 / min(gain, ceiling.most)) / len(names[choice])
    if untimed:
        latencies.session.budget.leave_out(f"latency per form: {', '.join(untimed)}")
    if slower:
        told = ", ".join(f"{c} {ratios[c]}" for c in slower)
        progress.say(f"no gain here, left out of the search: {told}")
    if undecided:
        told = ", ".join(f"{c} {ratios[c]}" for c in undecided)
        progress.say(f"unreliable, kept in the search: {told}", style="yellow")
    return Savings(saved, ratios, slower, undecided, base_ms / ceiling.most)


def promise(choice: str) -> int:
    """Where a choice stands in the order in which they are timed: those that save most first."""
    return {"hydra": 0, "skipat": 1}.get(form_of(choice)[0], 2)


def _is_so(latencies: Latencies, subject: str, plans: Sequence[Plan | None]) -> bool:
    """Whether a choice that a few items exclude gains nothing with the whole batch either."""
    few = latencies.items
    if not few:
        return True
    try:
        latencies.items = 0
        whole = latencies.short(subject, plans)
    except MeasureError:
        return False
    finally:
        latencies.items = few
    return whole.ratio(2).median < 1 + GAIN + (whole.floor or 0.0)


def _latency(timed: Timed, plan: int, lossless: int | None) -> PlanLatency:
    """What one series says of its plan; ``lossless``: the number of the lossless plan's series."""
    series = timed.times[plan]
    return PlanLatency(
        ms=median_ms(series),
        ratio=timed.ratio(plan),
        over_lossless=None if lossless is None else timed.ratio(plan, lossless),
        p95_ms=percentile_ms(series, 0.95),
        peak_mib=timed.peaks[plan] if timed.peaks else None,
        shapes_ms=list(timed.shapes[plan]) if timed.shapes else [],
    )


@dataclass(frozen=True, eq=False)
class Finalists:
    """The plans that are judged on held-out items.

    Attributes:
        plans: those whose latency could be measured.
        floor: how far two identical runs differed beside them. base_ms: the baseline's time there;
            both None where there are no plans.
    """

    plans: list[Candidate]
    floor: float | None = None
    base_ms: float | None = None


def measure_finalists(
    latencies: Latencies,
    chosen: Sequence[Candidate],
    keep: Callable[[Candidate], None],
    *,
    lossless: bool = False,
) -> Finalists:
    """The plans' latency, interleaved with the baseline, twice, in one process per group.

    A pool takes as many groups as it has workers, one worker all of them in one. Where that
    fails, one after the other; plans that fail are left out, all of them where the budget is
    spent. ``keep`` is told every plan with its latency at once. ``lossless``: beside the model
    under exact softmax by the kernels as well, the plan that converts nothing.

    Raises:
        MeasureError: none of them could be measured, with time left.
    """
    if not chosen:
        return Finalists([])
    latencies.items, budget = 0, latencies.session.budget
    progress, count = latencies.session.progress, min(latencies.workers, len(chosen))
    groups = [list(chosen[i::count]) for i in range(count)]
    floors, bases, measured = list[float](), list[float](), dict[str, Candidate]()
    failed = False
    beside = [Plan(assign(latencies.inspection.sites, "softmax")[0])] if lossless else []

    def asked(group: Sequence[Candidate]) -> tuple[str, list[Plan | None]]:
        subject = "finalists " + " ".join(c.plan.hash for c in group)
        return subject, [None, None, *beside, *(c.plan for c in group)]

    with progress.stage("finalists: latency", 1) as step:
        latencies.take_ahead(dict(asked(g) for g in groups), decides=True)
        while groups:
            group = groups.pop()
            subject, plans = asked(group)
            if failed and not budget.left and ("latency", subject) not in latencies.taken:
                continue
            try:
                timed = latencies.times(subject, plans, spare=len(group) > 1, decides=True)
            except MeasureError as error:
                failed = True
                alone = [[c] for c in group] if len(group) > 1 and budget.left else []
                latencies.take_ahead(dict(asked(g) for g in alone), decides=True)
                groups += alone
                if not (groups or bases) and budget.left:
                    raise
                progress.say(str(error), style="yellow")
                continue
            first = 3 if lossless else 2
            floors.append(timed.floor or 0.0)
            bases.append(median_ms(timed.times[0]))
            for i, candidate in enumerate(group, first):
                latency = _latency(timed, i, 2 if lossless else None)
                measured[candidate.plan.hash] = replace(candidate, latency=latency)
                keep(measured[candidate.plan.hash])
        step("")
    plans_in_order = [measured[c.plan.hash] for c in chosen if c.plan.hash in measured]
    if len(plans_in_order) < len(chosen) and not budget.left:
        missing = len(chosen) - len(plans_in_order)
        budget.leave_out(f"finalists: {missing} of {len(chosen)} could not be timed")
    if not bases:
        return Finalists([])
    return Finalists(plans_in_order, max(floors), median_ms(bases))
