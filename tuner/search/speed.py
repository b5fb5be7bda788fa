"""Latency in a run: the baseline and its ceiling, the saving per form, and the finalists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from attnpass.errors import MeasureError
from attnpass.plan import Plan, assign
from attnpass.tuner.measure import Ratio, floor, median_ms, ratio
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.plan_row import PlanLatency
from attnpass.tuner.search.result import LOSSLESS


@dataclass(frozen=True)
class Ceiling:
    """The compiled baseline, and the speed-ups that no plan can beat.

    Attributes:
        base_ms: median of the faster of the unchanged model and the lossless plan.
        softer: whether the latter is the baseline. floor: how far two identical runs differ.
        softmax, bare, skipped: the unchanged model over the lossless plan, over attention that
            reads q, k, v once, and over all skippable blocks left out.
        ceiling, ceiling_skipat: the baseline over the last two.
    """

    base_ms: float
    softer: bool
    floor: float
    softmax: Ratio
    bare: Ratio
    skipped: Ratio
    ceiling: float
    ceiling_skipat: float

    @property
    def baseline(self) -> str:
        """The name of the baseline."""
        return LOSSLESS if self.softer else "unchanged model, compiled"

    @property
    def share(self) -> float:
        """Attention's share of the baseline's time, 0 to 1."""
        return max(0.0, 1 - self.ceiling**-1)


def measure_ceiling(latencies: Latencies) -> Ceiling:
    """The compiled baseline, its noise, and the two ceilings.

    Raises:
        MeasureError: the worker could not measure.
    """
    progress = latencies.session.progress
    with progress.stage("baseline latency and ceiling", 1) as step:
        base, again, softmax, bare, skipped = latencies.ceiling()
        step("")
    first, noise = ratio(base, softmax), floor(base, again)
    softer = first.low > 1 + noise
    reference = softmax if softer else base
    found = Ceiling(
        base_ms=median_ms(reference),
        softer=softer,
        floor=noise,
        softmax=first,
        bare=ratio(base, bare),
        skipped=ratio(base, skipped),
        ceiling=ratio(reference, bare).median,
        ceiling_skipat=ratio(reference, skipped).median,
    )
    if softer:
        progress.say(f"lossless (exact softmax by the kernels): {first}, nothing to recover")
    progress.say(
        f"baseline ({found.baseline}): {found.base_ms:.2f} ms; two identical runs"
        f" differ by up to {found.floor:.1%}"
    )
    progress.say(
        f"attention is {found.share:.0%} of the baseline's time, no plan can gain more over it"
        f" than {found.ceiling:.2f}x (skipat, which drops the projections too:"
        f" {found.ceiling_skipat:.2f}x)",
        style="bold",
    )
    return found


@dataclass(frozen=True)
class Savings:
    """Milliseconds that each choice saves per site, negative where it is slower."""

    per_site: Mapping[str, float]

    @property
    def useful(self) -> list[str]:
        """The choices that make the model faster."""
        return [choice for choice, saved in self.per_site.items() if saved > 0]

    @property
    def slower(self) -> list[str]:
        """The choices that do not."""
        return [choice for choice, saved in self.per_site.items() if saved <= 0]

    def of(self, choice: str) -> float:
        """Milliseconds of one choice, 0 for softmax and for choices that were not measured."""
        return self.per_site.get(choice, 0.0)


def measure_savings(latencies: Latencies, library: PieceLibrary, base_ms: float) -> Savings:
    """The saving of each choice, from the plan that has it at every legal site."""
    inspection, progress = latencies.inspection, latencies.session.progress
    forms, legal = dict.fromkeys(inspection.settings.forms), inspection.legal
    saved: dict[str, float] = {}
    with progress.stage("latency per form", len(forms)) as step:
        for choice in forms:
            names = [site for site, choices in legal.items() if choice in choices]
            if names:
                plan = library.plan(dict.fromkeys(names, choice))
                try:
                    base, times = latencies.times(plan.hash, [None, plan], spare=True)
                    saved[choice] = base_ms * (1 - 1 / ratio(base, times).median) / len(names)
                except MeasureError as error:
                    progress.say(f"{choice}: {error}", style="yellow")
            step(choice)
    found = Savings(saved)
    if found.slower:
        progress.say(f"no gain here, left out of the search: {', '.join(found.slower)}")
    return found


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
    """The plans' latency, interleaved with the baseline, twice, in one process.

    Where that fails, one after the other; plans that fail are left out. ``keep`` is told every
    plan with its latency at once. ``lossless``: beside the model under exact softmax by the
    kernels as well, the plan that converts nothing.

    Raises:
        MeasureError: none of them could be measured.
    """
    if not chosen:
        return Finalists([])
    progress, groups = latencies.session.progress, [list(chosen)]
    floors, bases, measured = list[float](), list[float](), dict[str, Candidate]()
    with progress.stage("finalists: latency", 1) as step:
        while groups:
            group = groups.pop()
            subject = "finalists " + " ".join(c.plan.hash for c in group)
            sites = latencies.inspection.sites
            beside = [Plan(assign(sites, "softmax")[0])] if lossless else []
            plans = [None, None, *beside, *(c.plan for c in group)]
            try:
                times = latencies.times(subject, plans, spare=len(group) > 1)
            except MeasureError as error:
                groups += [[c] for c in group] if len(group) > 1 else []
                if not (groups or bases):
                    raise
                progress.say(str(error), style="yellow")
                continue
            base, again, *rest = times
            exact = rest.pop(0) if lossless else None
            floors.append(floor(base, again))
            bases.append(median_ms(base))
            for candidate, series in zip(group, rest, strict=True):
                over = None if exact is None else ratio(exact, series)
                latency = PlanLatency(median_ms(series), ratio(base, series), over)
                measured[candidate.plan.hash] = replace(candidate, latency=latency)
                keep(measured[candidate.plan.hash])
        step("")
    plans_in_order = [measured[c.plan.hash] for c in chosen if c.plan.hash in measured]
    return Finalists(plans_in_order, max(floors), median_ms(bases))
