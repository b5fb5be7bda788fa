"""From the records of the stages that are done to the result of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from attnpass import environment
from attnpass.tuner.measure import needed
from attnpass.tuner.search.baseline import Baseline
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.candidates import Candidates, Damage
from attnpass.tuner.search.ceiling import Ceiling
from attnpass.tuner.search.inspection import Inspection
from attnpass.tuner.search.plan_row import PlanRow
from attnpass.tuner.search.racing import nearest
from attnpass.tuner.search.result import DistilledChoice, Facts, RunResult
from attnpass.tuner.search.speed import Finalists, Savings, ThreadCount


@dataclass(frozen=True)
class Findings:
    """The records of the stages that are done; None or empty where a stage is not.

    Attributes:
        fit: calibration error per choice and site. distilled: the choices distilled locally.
    """

    baseline: Baseline | None = None
    ceiling: Ceiling | None = None
    threads: Sequence[ThreadCount] = ()
    fit: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    savings: Savings | None = None
    distilled: Mapping[str, DistilledChoice] = field(default_factory=dict)
    candidates: Candidates | None = None
    damage: Damage = field(default_factory=dict)
    finalists: Finalists | None = None


def facts_of(findings: Findings, max_drop: float) -> Facts:
    """The numbers that the stages found."""
    facts = Facts()
    if (baseline := findings.baseline) is not None:
        facts = replace(
            facts,
            items=sum(baseline.sizes),
            selection=len(baseline.selection),
            held_out=len(baseline.held_out),
            crossed=baseline.split.crossed,
            baseline_score=float(baseline.scored.mean()),
            random=baseline.random or None,
            provable=needed(max_drop),
        )
    if (ceiling := findings.ceiling) is not None:
        facts = replace(
            facts,
            baseline_ms=ceiling.base_ms,
            floor=ceiling.floor,
            baseline=ceiling.baseline,
            attention_share=ceiling.share,
            ceiling=ceiling.ceiling,
            ceiling_skipat=ceiling.ceiling_skipat,
            reliable=None if ceiling.reliable else False,
            conditions=None if ceiling.conditions is None else ceiling.conditions.as_dict(),
            ceiling_ratio=ceiling.over_bare,
            softmax_ratio=ceiling.softmax,
            bare_ratio=ceiling.bare,
            skip_ratio=ceiling.skipped,
        )
    if findings.threads:
        facts = replace(facts, threads=[asdict(x) for x in findings.threads])
    if findings.savings is not None:
        found = findings.savings
        facts = replace(
            facts,
            saving_ms_per_site=dict(found.per_site),
            form_ratios=dict(found.ratios),
            undecided=list(found.undecided) or None,
        )
    if findings.distilled:
        facts = replace(facts, bank=dict(findings.distilled))
    finalists = findings.finalists
    if finalists is not None and finalists.floor is not None:
        facts = replace(facts, finalists_floor=finalists.floor, baseline_ms=finalists.base_ms)
    return facts


def summarise(
    inspection: Inspection,
    findings: Findings,
    finalists: Sequence[Candidate],
    *,
    status: str,
    created: str,
    cut: Sequence[str] = (),
) -> RunResult:
    """The result of a run, ``done`` or ``interrupted``; ``cut``: what there was no time for."""
    limit = inspection.settings.max_drop
    facts = replace(facts_of(findings, limit), cut=list(cut) or None)
    judged = sorted((c.row for c in finalists), key=_speed_up, reverse=True)
    noise = facts.finalists_floor or 0.0
    settings = inspection.settings
    rows = [
        r
        for r in judged
        if r.latency is not None and r.latency.least > 1 + noise and settings.allows(r.latency)
    ]
    proven = [r for r in rows if _proven(r, inspection.limits)]
    candidates = findings.candidates
    tried = [] if candidates is None else list(candidates.tried.values())
    near = [] if judged or candidates is None else [c.row for c in nearest(candidates)]
    return RunResult(
        run=inspection.run,
        status=status,
        task=inspection.settings.task,
        created=created,
        metric=inspection.task.metric,
        settings=inspection.asked,
        facts=facts,
        device=environment.device(inspection.kind),
        versions=environment.versions(),
        sites=[s.as_dict() for s in inspection.sites],
        declined=[d.as_dict() for d in inspection.capture.declined],
        sensitivity=findings.damage,
        fit=findings.fit,
        tried=len(tried),
        front=rows,
        slower=[r for r in judged if r not in rows],
        nearest=near,
        best=proven[0].plan if proven else None,
        scored=sorted((c.row for c in tried), key=lambda r: r.estimate_ms),
    )


def _proven(row: PlanRow, limits: Mapping[str, float]) -> bool:
    """Whether the held-out items prove that a plan keeps the limit of every metric."""
    if row.held_out is None or row.held_out.upper > limits[""]:
        return False
    return all(x.upper <= limits[m] for m, x in row.others.items())


def _speed_up(row: PlanRow) -> float:
    """The measured speed-up, 0 where there is none."""
    return row.latency.ratio.median if row.latency is not None else 0.0
