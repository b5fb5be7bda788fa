"""Which plans are distilled, which are judged, and which are shown where none is proven."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning import TASKS, pool

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.plan import assign
from attnpass.store import Store
from attnpass.tuner.measure import Bound
from attnpass.tuner.search import racing
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.learned import Effects
from attnpass.tuner.search.plan_row import Recovery
from attnpass.tuner.search.racing import (
    LEAST_GAIN,
    choose_finalists,
    corrections,
    gain,
    judge_held_out,
    likely,
    nearest,
    promising,
    recover_promising,
    worth,
)
from attnpass.tuner.search.racing import recovered as after_distillation
from attnpass.tuner.search.settings import REJECTED


def test_recovered_plans_are_ranked_beside_what_they_were(recovered):
    candidates = recovered.candidates
    with_recovery = [c for c in candidates.tried.values() if c.recovery]
    assert with_recovery
    with Store(recovered.path) as store:
        kind = "SELECT count(*) AS n FROM measurements WHERE kind = 'recovered'"
        assert next(iter(store.db.query(kind)))["n"] >= len(with_recovery)
    for c in with_recovery:
        before = candidates.library.plan(c.assignment)
        assert before.hash in candidates.tried and before.hash != c.plan.hash
        assert c.recovery.drop_before == candidates.tried[before.hash].selection.drop
        assert c.recovery.steps > 0
    assert {r.plan for r in recovered.result.front} <= set(candidates.tried)


def test_a_set_of_one_batch_is_crossed_by_its_items(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store, task=f"{TASKS}:one_batch")
        plan = Plan(assign(candidates.inspection.sites, "hydra")[0])
        candidates.keep(
            Candidate({}, plan, 0.5, candidates.baseline.selection.clone(), divergence=0.1)
        )
        assert candidates.baseline.sizes == [60] and candidates.baseline.split.crossed
        assert [len(candidates.baseline.half(half)) for half in (0, 1)] == [30, 30]
        for _ in range(2):  # an interruption asks again
            (best,) = choose_finalists(candidates)
            assert best.plan is plan
            assert sorted(best.judged) == list(range(60))


def test_each_half_is_judged_by_the_items_of_the_other(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        base, made = candidates.baseline, {}
        for form, cost, half in (("hydra", 0.5, 0), ("relu", 0.6, 1), ("sigmoid", 0.9, None)):
            scores = base.selection.clone()
            if half is not None:
                scores[base.half(half)] = 0.0  # good on the other half alone
            plan = Plan(assign(candidates.inspection.sites, form)[0])
            made[form] = Candidate({}, plan, cost, scores, divergence=0.1)
            candidates.keep(made[form])
        found = {c.plan.hash: c.judged for c in choose_finalists(candidates)}
    assert found == {
        made["hydra"].plan.hash: tuple(base.half(0)),
        made["relu"].plan.hash: tuple(base.half(1)),
    }


@pytest.fixture
def judged(tmp_path):
    """Candidates of four made-up plans, none of them crossed, and these by name."""
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        base = candidates.baseline
        limit, plan = candidates.inspection.settings.max_drop, candidates.library.plan({})
        rows = {"far": (0.5, 4, 0.3), "near": (0.7, 2, 0.2), "worse": (0.8, 2, 0.25)}
        made = {}
        for name, (cost, drop, moved) in (rows | {"close": (0.9, 1.5, 0.1)}).items():
            made[name] = Candidate(
                {},
                plan,
                candidates.base_ms * cost,
                base.selection - limit * drop,
                Bound(100, 0.5, limit * drop, limit * (drop + 1), 0.95),
                moved,
            )
        candidates.tried = dict(made)
        candidates.baseline = replace(base, split=replace(base.split, crossed=False))
        yield candidates, made


def test_plans_out_of_reach_are_distilled_last(judged):
    candidates, made = judged
    assert promising(candidates, 2) == [made["near"], made["close"]]
    assert promising(candidates, 4) == [made["near"], made["close"], made["far"]]


def test_of_plans_out_of_reach_those_that_lose_least_are_first(judged):
    candidates, made = judged
    limit = candidates.inspection.settings.max_drop
    drops = {"far": 40, "near": 20, "close": 5}
    for name, drop in drops.items():
        bound = replace(made[name].selection, drop=limit * drop)
        candidates.tried[name] = replace(made[name], selection=bound)
    assert [c.selection.drop / limit for c in promising(candidates, 3)] == [5, 20, 40]


def test_a_plan_whose_scores_ended_early_may_be_distilled(judged, monkeypatch):
    candidates, made = judged
    limit = candidates.inspection.settings.max_drop
    bound = replace(made["far"].selection, drop=limit * 9)
    candidates.tried = {"early": replace(made["far"], divergence=REJECTED, selection=bound)}
    monkeypatch.setattr(candidates, "divergence", lambda plan: 0.5)
    assert promising(candidates, 2) == [candidates.tried["early"]]
    monkeypatch.setattr(candidates, "divergence", lambda plan: REJECTED)
    assert promising(candidates, 2) == []


def test_a_plan_without_gain_is_not_distilled(judged):
    candidates, made = judged
    little = candidates.base_ms / (1 + LEAST_GAIN / 2)
    for moved, drop in ((0.01, 0.0), (0.02, 1.5)):
        scores = candidates.baseline.selection - candidates.inspection.settings.max_drop * drop
        candidates.tried[moved] = replace(
            made["close"], cost=little, divergence=moved, scores=scores
        )
    assert promising(candidates, 4) == [made["near"], made["close"], made["far"]]


def test_half_of_the_plans_go_on_in_every_round(judged, monkeypatch):
    candidates, made = judged
    trained = []
    monkeypatch.setattr(racing, "promising", lambda _, count: list(made.values())[:count])
    monkeypatch.setattr(
        racing, "recovered", lambda a, b, c, share, whole: trained.append((c, share * whole)) or c
    )
    monkeypatch.setattr(racing, "worth", lambda _, c: list(made.values()).index(c))
    recover_promising(candidates, None, 12, 60.0)
    far, near, worse, close = made.values()
    assert trained[:4] == [(c, 5.0) for c in (far, near, worse, close)]
    assert trained[4:] == [(close, 10.0), (worse, 10.0), (close, 20.0)]
    trained.clear()
    recover_promising(candidates, None, 11, 60.0)
    assert [s for _, s in trained] == [10.0] * 3 + [30.0], "three plans in two rounds"
    trained.clear()
    recover_promising(candidates, None, 3, 60.0)
    assert trained == [(far, 60.0)]


def test_distillation_takes_what_the_finalists_and_the_scores_leave(judged, monkeypatch):
    candidates, made = judged
    trained = []
    monkeypatch.setattr(racing, "promising", lambda _, count: list(made.values())[:count])
    monkeypatch.setattr(
        racing, "recovered", lambda a, b, c, share, whole: trained.append(share * whole) or c
    )
    base = candidates.baseline
    items = sum(base.sizes)
    candidates.baseline = replace(base, seconds=5.0 * items / len(base.selection))
    recover_promising(candidates, None, 3, 60.0, lambda: 35.0)
    assert trained == pytest.approx([30.0])
    assert candidates.session.budget.cut == ["distillation of whole plans: 30 s of 60 s"]
    trained.clear()
    recover_promising(candidates, None, 99, 60.0, lambda: 57.0)
    assert len(trained) == 7 and sum(trained) == pytest.approx(22.0)
    trained.clear()
    recover_promising(candidates, None, 99, 60.0, lambda: 37.0)
    assert len(trained) == 4 and sum(trained) == pytest.approx(17.0), "three plans, not four"
    trained.clear()
    recover_promising(candidates, None, 5, 60.0, lambda: 57.0)
    assert len(trained) == 1, "less time, fewer plans"
    trained.clear()
    candidates.session.budget.cut.clear()
    recover_promising(candidates, None, 3, 60.0, lambda: 10.0)
    assert trained == [] and candidates.session.budget.cut == ["distillation of whole plans"]
    candidates.session.budget.cut.clear()
    time = iter([60.0, 60.0, 0.0])
    recover_promising(candidates, None, 12, 20.0, lambda: next(time))
    assert len(trained) == 1
    assert candidates.session.budget.cut == ["distillation of whole plans, in part"]


def test_a_plan_is_worth_its_gain_times_the_chance_of_a_proof(judged):
    candidates, made = judged
    base = candidates.baseline
    candidates.baseline = replace(base, held_out=base.selection)
    sure = replace(made["close"], scores=base.selection.clone())
    risky = replace(made["close"], scores=base.selection.clone())
    risky.scores[:: round(1 / candidates.inspection.settings.max_drop)] -= 1.0
    assert 0 < worth(candidates, risky) < worth(candidates, sure) < gain(candidates, sure)
    assert gain(candidates, sure) == pytest.approx(1 / 0.9 - 1)
    assert worth(candidates, made["far"]) < 1e-6, "the fastest, but beyond proof"
    stopped = replace(sure, scores=sure.scores[:-1])
    assert worth(candidates, stopped) == 0, "scored in part"


def test_what_other_plans_tell_of_its_parts_corrects_a_lucky_plan(judged):
    """Scored without a loss, its parts lose each in the plans that have one alone."""
    candidates, made = judged
    base = candidates.baseline
    candidates.baseline = replace(base, held_out=base.selection)
    sites = [s.name for s in candidates.inspection.sites]
    damage = {s: {"softmax": 0.0, "hydra": 0.5} for s in sites}
    effects = candidates.effects = Effects(damage, {"hydra": 1.0}, allowed=0.01)
    assert corrections(candidates) == {}, "nothing is known yet"
    for site in sites:
        effects.tell({s: "hydra" if s == site else "softmax" for s in sites}, 0.02, 0.001)
    assignment = dict.fromkeys(sites, "hydra")
    lucky = replace(made["close"], assignment=assignment, scores=base.selection.clone())
    trained = replace(
        lucky, plan=candidates.library.plan(assignment), recovery=Recovery(0.0, 3, 0.5)
    )
    effects.tell(assignment, 0.0, 0.01)
    candidates.tried = {c.plan.hash: c for c in (lucky, trained)}
    told = corrections(candidates)
    ((name, (above, error)),) = told.items()
    assert name == lucky.plan.hash and above > 0.02 and error > 0
    assert likely(candidates, lucky, 0.95, told) < likely(candidates, lucky, 0.95)
    assert likely(candidates, trained, 0.95, told) == likely(candidates, trained, 0.95)


def test_where_no_plan_keeps_the_limit_the_nearest_are_shown(judged):
    candidates, made = judged
    assert nearest(candidates) == [made["close"], made["near"], made["far"]]


def test_where_training_fails_the_candidate_stays(judged, monkeypatch):
    said = []

    def fails(*_):
        raise MeasureError("expected a finite loss, got nan")

    candidates, made = judged
    monkeypatch.setattr(racing, "distil_plan", fails)
    monkeypatch.setattr(candidates.session.progress, "say", lambda text, style: said.append(text))
    assert after_distillation(candidates, None, made["near"], 0.5, 9.0) is made["near"]
    monkeypatch.setattr(racing, "distil_plan", lambda *_: None)
    assert after_distillation(candidates, None, made["near"], 0.5, 9.0) is made["near"], (
        "no learner"
    )
    assert candidates.tried == made
    assert len(said) == 1 and "not distilled" in said[0] and "got nan" in said[0]


def test_a_plan_that_is_distilled_again_adds_up_its_steps(judged, monkeypatch):
    candidates, made = judged
    plan = candidates.inspection.base
    trained = Recovery(0.0, 3, 0.5, {"name": "global"})
    monkeypatch.setattr(racing, "distil_plan", lambda *_: (plan, trained))
    monkeypatch.setattr(
        candidates, "scored", lambda assignment, plan: replace(made["near"], plan=plan)
    )
    once = after_distillation(candidates, None, made["near"], 0.5, 9.0)
    twice = after_distillation(candidates, None, once, 0.5, 9.0)
    drop = made["near"].selection.drop
    assert once.recovery == Recovery(drop, 3, 0.5, {"name": "global"})
    assert twice.recovery == Recovery(drop, 6, 1.0, {"name": "global"})
    assert candidates.tried[plan.hash] is twice


def test_finalists_are_judged_by_their_items_and_stored(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        plan = candidates.library.plan({})
        selection = candidates.baseline.selection
        made = Candidate({}, plan, 0.5, selection, judged=tuple(range(30)))
        (one,) = judge_held_out(candidates, [made])
        assert candidates.tried[plan.hash] is one
        stored = store.plan(plan.hash)
    assert one.held_out.items == 30 and one.held_out.drop == 0
    assert one.held_out.confidence == 0.95
    assert stored.measured["held_out"] == one.held_out.as_dict()
    assert stored.measured["latency"] == made.row.latency_dict()
    assert stored.measured["baseline_ms"] == 1.0
