"""A tuning run: the order of its stages, resume, and what is stored.

Every measurement is committed before the next begins, so running the same command again goes on
where it stopped: a stage that finds its measurements in the store takes none. A mismatch says
which field differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from attnpass.errors import CaptureError, MeasureError
from attnpass.store import Store
from attnpass.tuner.measure import Pool
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search.baseline import measure_baseline
from attnpass.tuner.search.budget import Budget
from attnpass.tuner.search.candidates import (
    Candidates,
    damage_to_measure,
    measure_damage,
    search_plans,
)
from attnpass.tuner.search.ceiling import items_to_time, measure_ceiling
from attnpass.tuner.search.distillation import (
    LOCAL_SHARE,
    Distillation,
    affordable_plans,
    distil_pieces,
    worth_distilling,
)
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.latencies import Latencies
from attnpass.tuner.search.observers import Observers
from attnpass.tuner.search.pieces import PieceLibrary
from attnpass.tuner.search.racing import choose_finalists, judge_held_out, recover_promising
from attnpass.tuner.search.reserve import Reserve
from attnpass.tuner.search.result import DistilledChoice, RunResult
from attnpass.tuner.search.session import NotReproducedError, Session
from attnpass.tuner.search.speed import (
    compare_threads,
    measure_finalists,
    measure_savings,
)
from attnpass.tuner.search.summary import Findings, summarise
from attnpass.tuner.search.tiling import tune_tiles
from attnpass.tuner.search.workers import one_worker


def execute(
    inspection: Inspection,
    store: Store,
    progress: ProgressPrinter,
    observers: Observers | None = None,
    pool: Pool | None = None,
) -> RunResult:
    """Run all stages; returns the result, which is also stored.

    Latencies are taken by the ``pool``, by one process where there is none. Tiles are searched
    where the latter is the case: here.
    On Ctrl-C the best result so far is stored and returned with status ``interrupted``.
    ``observers`` are told each plan that is judged; the end is for the caller to tell.

    Raises:
        AttnpassError: the task, the model or the store is not usable.
    """
    settings, findings = inspection.settings, Findings()
    budget = Budget(settings.budget or math.inf)
    session = Session(
        *(inspection.run, store, progress),
        refresh=settings.refresh,
        budget=budget,
        observers=observers,
    )

    def stopped() -> bool:
        return session.stop.requested

    known = store.run(inspection.run)
    created = known["created"] if known else inspection.created
    with session.stop.handled():
        _save(inspection, store, created, "running", None)
        try:
            if pool is None:
                inspection = tune_tiles(inspection, session)
            else:
                pool.stopped = stopped
            with pool or one_worker(inspection, store, stopped) as worker:
                latencies = Latencies(inspection, session, worker)
                for done in believed(session, lambda: stages(inspection, session, latencies)):
                    findings = done
            finalists, status = findings.finalists.plans if findings.finalists else [], "done"
        except KeyboardInterrupt:
            session.stop.close()
            candidates, status = findings.candidates, "interrupted"
            finalists = [] if candidates is None else choose_finalists(candidates)
        session.stop.close()
        result = summarise(
            inspection, findings, finalists, status=status, created=created, cut=budget.cut
        )
        _save(inspection, store, created, status, result)
    return result


def believed(session: Session, stages: Callable[[], Iterator[Findings]]) -> Iterator[Findings]:
    """The stages; from the start, and nothing from the store, if a stored plan is another now.

    Raises:
        KeyboardInterrupt: the run is to stop.
    """
    try:
        yield from stages()
    except NotReproducedError as error:
        session.progress.say(f"{error}; measured anew", style="yellow")
        session.refresh = True
        session.budget.cut.clear()
        yield from stages()


def stages(inspection: Inspection, session: Session, latencies: Latencies) -> Iterator[Findings]:
    """Run the stages in order; yields the records of all that are done after each.

    Raises:
        KeyboardInterrupt: the run is to stop; the findings yielded last are those that there are.
    """
    settings, budget = inspection.settings, session.budget
    baseline = measure_baseline(inspection, session)
    yield (found := Findings(baseline))
    latencies.left = budget.stage()
    few = items_to_time(inspection, baseline.seconds / sum(baseline.sizes))
    try:
        ceiling = measure_ceiling(latencies, few)
    except MeasureError:
        if budget.left:
            raise
        budget.leave_out("baseline latency and ceiling")
        return
    yield (found := replace(found, ceiling=ceiling))
    if not any(ceiling.allows(form) for form in ("hydra", "skipat")):
        return
    latencies.left = budget.stage()
    yield (found := replace(found, threads=compare_threads(latencies, ceiling)))
    library = PieceLibrary(inspection)
    latencies.left = budget.stage()
    savings = measure_savings(latencies, library, ceiling)
    yield (found := replace(found, savings=savings))
    if not savings.useful:
        return
    choices, batches = damage_to_measure(baseline, budget, inspection.legal, savings)
    distils = settings.recover == "distil"
    reserve = Reserve(latencies, baseline)
    reserve.share(settings.recover_amount if distils else 0.0)
    session.progress.say(reserve.outlook(), style="dim")
    yield (found := replace(found, fit=library.calibrate(session, choices, reserve.needed)))
    savings = savings.only(found.fit)
    if not savings.useful:
        return
    watched = () if baseline.split.crossed else baseline.split.selection
    distillation = Distillation(inspection, session, watched)
    whole = 0.0
    if distils:
        able = [c for c in savings.useful if any(library.everywhere(c).values.values())]
        chosen = worth_distilling({c: savings.of(c) for c in able}, found.fit)
        amount = LOCAL_SHARE * reserve.distilling
        distilled = distil_useful(distillation, library, chosen, amount)
        yield (found := replace(found, distilled=distilled))
        whole = settings.recover_amount * (1 - LOCAL_SHARE)
        reserve.share(whole)
    candidates = Candidates(
        inspection, session, baseline, library, ceiling.base_ms, savings, batches
    )
    found = replace(found, candidates=candidates)
    with candidates.sharing():
        for damage in measure_damage(candidates, reserve.needed):
            yield (found := replace(found, damage=damage))
        reserve.share(whole)
        search_plans(candidates, found.damage, reserve.needed)
    if distils:
        reserve.distilling = 0.0
        counted = settings.recover_steps > 0
        affordable = affordable_plans(whole, found.distilled, steps=counted)
        time_left = lambda: budget.left - reserve.needed()  # noqa: E731
        recover_promising(candidates, distillation, affordable, whole, time_left)
    latencies.left = lambda: budget.left
    looked_at = choose_finalists(candidates, reserve.affordable())
    finalists = measure_finalists(latencies, looked_at, candidates.keep, lossless=ceiling.softer)
    yield (found := replace(found, finalists=finalists))
    judged = judge_held_out(candidates, finalists.plans)
    yield replace(found, finalists=replace(finalists, plans=judged))


def distil_useful(
    distillation: Distillation, library: PieceLibrary, useful: list[str], amount: float
) -> dict[str, DistilledChoice]:
    """Distil choices that make the model faster; none where training fails.

    Raises:
        KeyboardInterrupt: the run is to stop.
    """
    if not useful:
        return {}
    wanted = LOCAL_SHARE * distillation.inspection.settings.recover_amount
    distillation.session.budget.shorten("distillation of choices", amount, wanted)
    if amount <= 0:
        return {}
    say = distillation.session.progress.say
    try:
        found = distil_pieces(distillation, library, useful, amount)
    except (MeasureError, CaptureError, torch.OutOfMemoryError) as error:
        say(f"not distilled, calibrated only: {error}", style="yellow")
        return {}
    for choice, row in found.items():
        if not row.steps:
            why = "no time for a step" if row.losses else "nothing to train"
            say(f"{choice}: {why}")
            continue
        worst = max(row.losses.values(), default=0.0)
        say(
            f"{choice}: {row.steps} steps, blocks off by at most {worst:.0%} of their"
            " output's power"
        )
    return found


def _save(
    inspection: Inspection, store: Store, created: str, status: str, result: RunResult | None
) -> None:
    store.save_run(
        {
            "id": inspection.run,
            "created": created,
            "task": inspection.settings.task,
            "name": inspection.task.name,
            "status": status,
            "settings": inspection.asked,
            "context": inspection.timing,
            "result": None if result is None else json.dumps(result.as_dict(), default=str),
        }
    )
