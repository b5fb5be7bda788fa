"""The result of the records of the stages."""

from __future__ import annotations

from dataclasses import replace

from attnpass.tuner.search.plan_row import PlanLatency
from attnpass.tuner.search.speed import Finalists
from attnpass.tuner.search.summary import Findings, facts_of, summarise


def test_best_is_proven_and_faster_than_the_noise_or_there_is_none(finished):
    result = finished.result
    best = [r for r in result.front if r.plan == result.best]
    proven = [
        r
        for r in result.front
        if r.held_out.upper <= 0.3 and r.latency.ratio.low > 1 + result.facts.finalists_floor
    ]
    assert bool(best) == bool(proven)
    assert all(b in proven for b in best)


def test_the_fastest_proven_finalist_is_the_best(finished):
    (one, *_) = finished.candidates.tried.values()

    def finalist(median: float, upper: float):
        bound = replace(one.selection, upper=upper)
        ratio = replace(finished.findings.ceiling.bare, median=median, low=median - 0.1)
        return replace(one, held_out=bound, latency=PlanLatency(5.0, ratio))

    rows = [finalist(1.5, 0.2), finalist(2.0, 0.4), finalist(1.05, 0.1), finalist(0.97, 0.1)]
    found = replace(finished.findings, finalists=Finalists(rows, 0.02, 5.0))
    result = summarise(finished.inspection, found, rows, status="done", created="now")
    assert [r.latency.ratio.median for r in result.front] == [2.0, 1.5]
    assert [r.latency.ratio.median for r in result.slower] == [1.05, 0.97], "within the noise"
    assert result.best == rows[0].plan.hash and result.nearest == []
    assert (result.facts.finalists_floor, result.facts.baseline_ms) == (0.02, 5.0)
    none = summarise(finished.inspection, found, rows[2:], status="done", created="now")
    assert none.best is None and none.front == [] and len(none.slower) == 2


def test_random_scores_are_marked_and_others_not(finished):
    baseline = finished.findings.baseline
    assert "random" not in facts_of(Findings(baseline), 0.01).as_dict()
    random = facts_of(Findings(replace(baseline, random=True)), 0.01)
    assert random.as_dict()["random"] is True


def test_a_run_that_was_stopped_at_once_has_no_facts(finished):
    assert facts_of(Findings(), 0.01).as_dict() == {}
    given = {"status": "interrupted", "created": "now"}
    result = summarise(finished.inspection, Findings(), [], **given)
    assert (result.tried, result.front, result.nearest, result.best) == (0, [], [], None)
    assert result.sensitivity == {} and result.fit == {}
