"""Every plan is scored once; the search begins with plans that are known to be good."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tuning import pool, rows

from attnpass.store import Store
from attnpass.tuner.measure import Scored, bound
from attnpass.tuner.search import candidates as module
from attnpass.tuner.search.baseline import REFERENCES
from attnpass.tuner.search.budget import STAGE, Budget
from attnpass.tuner.search.candidate import Candidate
from attnpass.tuner.search.candidates import (
    Told,
    damage_to_measure,
    first_plans,
    measure_damage,
    search_plans,
)
from attnpass.tuner.search.session import NotReproducedError
from attnpass.tuner.search.settings import REJECTED
from attnpass.tuner.search.speed import Savings


def test_a_plan_is_scored_once_and_read_from_the_store(finished, monkeypatch):
    before = rows(finished.path)
    assigned = next(iter(finished.candidates.tried.values())).assignment
    monkeypatch.setattr(module, "scores", lambda *a, **k: 1 / 0)
    with Store(finished.path) as store:
        candidates = pool(store)
        candidates.library.calibrate(candidates.session)
        candidates.savings = Savings({"hydra": 0.125})
        found = candidates.of(assigned)
        assert candidates.of(assigned) is found and list(candidates.tried) == [found.plan.hash]
    hydras = list(assigned.values()).count("hydra")
    assert found.cost == 1.0 - 0.125 * hydras
    assert len(found.scores) == 60 and found.selection.items == 60
    assert rows(finished.path) == before


def test_the_first_stored_plan_is_evaluated_anew(finished, monkeypatch):
    tried = finished.candidates.tried.values()
    assigned = next(c.assignment for c in tried if c.scores.sum() == 60)  # all right
    with Store(finished.path) as store:
        candidates = pool(store)
        candidates.library.calibrate(candidates.session)
        monkeypatch.setattr(candidates.inspection.task, "score", lambda out, y: out[:, 0] * 0)
        with pytest.raises(NotReproducedError, match=r"not reproduced \(item \d+: 0, stored 1\)"):
            candidates.of(assigned)
        candidates.session.verified = True
        assert candidates.of(assigned).selection is not None


def test_a_divergence_that_is_stored_is_not_written_again(tmp_path, monkeypatch):
    """As after a run that was killed between the two."""
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        candidates.library.calibrate(candidates.session)
        candidates.divergence(candidates.library.plan({"blocks.0.attn": "hydra"}))
        before, kept = rows(store.path), list[str]()
        keep = candidates.session.keep
        monkeypatch.setattr(
            candidates.session, "keep", lambda kind, *a, **k: kept.append(kind) or keep(kind, *a)
        )
        candidates.of({"blocks.0.attn": "hydra"})
        assert kept == ["accuracy"] and before.items() <= rows(store.path).items()


def test_a_hopeless_plan_is_rejected_without_its_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "scores", lambda *a, **k: Scored(torch.zeros(10), {}, (0,), False))
    monkeypatch.setattr(module, "divergence", lambda *a: 1 / 0)
    with Store(tmp_path / "a.db") as store:
        found = pool(store).of({"blocks.0.attn": "hydra"})
    assert found.divergence == REJECTED and len(found.scores) == 10
    assert found.assignment["blocks.1.attn"] == "softmax"


def test_what_was_stopped_early_is_taken_where_it_would_be_stopped_again(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        candidates.library.calibrate(candidates.session)
        first = candidates.rejection.order[0]
        size = len(candidates.positions[first])
        hopeless = {"scores": [0.0] * size, "batches": [first], "complete": False, "more": {}}
        limits = []
        for limit in (0.0, 0.99):
            candidates.rejection.limit = limit
            limits.append(candidates._fits(hopeless))
        assert limits == [True, False], "a run that allows more scores it anew"


def test_a_run_that_goes_on_knows_where_plans_lost(finished):
    """The order of batches, and so where the next plan is stopped, is that of one run."""
    with Store(finished.path) as store:
        candidates = pool(store)
        candidates.library.calibrate(candidates.session)
        for found in finished.candidates.tried.values():
            candidates.of(found.assignment)
    assert candidates.rejection.losses == finished.candidates.rejection.losses


def test_effects_are_told_the_worst_metric_and_what_is_known_of_a_plan_stopped_early(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        base, limit = candidates.baseline.selection, candidates.inspection.limits[""]
        told = Told(candidates)
        same = bound(base, base)
        assert told.room == pytest.approx(limit - same.upper)
        whole = Candidate({}, candidates.library.plan({}), scores=base, selection=same)
        assert told.of(whole)[0] == 0.0
        part, lost = base[:20], base[:20] * 0
        early = replace(whole, scores=lost, selection=bound(part, lost))
        over, error = told.of(early)
        drop = float(part.mean())
        assert over == pytest.approx(drop * 20 / len(base)) and over + error == pytest.approx(drop)
        # another metric with half the room: its bound counts twice
        told.same, told.limits = {**told.same, "m": 0.0}, {**told.limits, "m": told.room / 2}
        worse = replace(whole, others={"m": replace(same, upper=told.room / 4)})
        assert told.of(worse)[0] == pytest.approx(told.room / 2)


def test_outputs_that_are_not_finite_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "divergence", lambda *a: float("nan"))
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        assert candidates.divergence(candidates.library.plan({})) == REJECTED


def test_damage_grows_by_one_choice_at_a_time(tmp_path, monkeypatch):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        candidates.savings = Savings({"hydra": 1.0, "skipat r=0": -1.0})
        monkeypatch.setattr(candidates, "divergence", lambda plan: 0.5)
        first, *_, last = found = list(measure_damage(candidates))
    assert first == {f"blocks.{i}.attn": {"softmax": 0.0} for i in range(3)} and len(found) == 4
    assert last == {f"blocks.{i}.attn": {"softmax": 0.0, "hydra": 0.5} for i in range(3)}


def test_sensitivity_takes_no_more_than_its_share_of_the_budget():
    baseline = SimpleNamespace(
        seconds_reference=[1.0] * 4, reference_batches=[2, 3, 4, 5], sizes=[10] * 9
    )
    legal = {"a": ["hydra", "relu"], "b": ["hydra", "relu", "skipat"], "c": ["hydra", "skipat"]}
    savings = Savings({"relu": 1.0, "hydra": 3.0, "skipat": 2.0, "gelu": -1.0})

    def found(runs: float) -> tuple[list[str], int, list[str]]:
        """Where the stage has the time of so many runs of one batch."""
        budget = Budget(runs / STAGE)
        return *damage_to_measure(baseline, budget, legal, savings), budget.cut

    every = ["hydra", "skipat", "relu"]
    assert found(28) == (every, REFERENCES, []), "seven pairs by four batches"
    assert found(27) == (every, 2, []), "two batches are the first that hold 16 items"
    assert found(13) == (["hydra", "skipat"], 2, ["sensitivity: relu"])
    assert found(0) == (["hydra", "skipat"], 2, ["sensitivity: relu"]), "two pairs a site at least"
    assert found(math.inf) == (every, REFERENCES, [])


def test_sensitivity_leaves_time_to_the_finalists(tmp_path, monkeypatch):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        candidates.savings = Savings({"hydra": 1.0})
        monkeypatch.setattr(candidates, "divergence", lambda plan: 0.5)
        candidates.session.budget = Budget(10.0, lambda: 0.0)
        times = iter([9.0, 11.0])
        (*_, damage) = measure_damage(candidates, lambda: next(times))
    assert [len(row) for row in damage.values()] == [2, 2, 1]
    assert candidates.session.budget.cut == ["sensitivity: hydra"]


def test_the_first_plans_begin_with_the_unchanged_and_end_with_single_sites():
    damage = {s: {"softmax": 0.0, "hydra": x} for s, x in (("a", 3.0), ("b", 1.0), ("c", 2.0))}
    found = first_plans(damage, Savings({"hydra": 1.0}))
    softmax = dict.fromkeys("abc", "softmax")
    assert found[0] == softmax
    assert found[-3:] == [{**softmax, site: "hydra"} for site in "bca"]
    assert dict.fromkeys("abc", "hydra") in found


def test_the_search_leaves_time_to_the_finalists(tmp_path):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        clock = [0.0]
        candidates.session.budget = Budget(10.0, lambda: clock[0])
        sites = [s.name for s in candidates.inspection.sites]
        damage = {s: {"softmax": 0.0, "hydra": 0.5} for s in sites}

        def reserve():
            clock[0] += 1.0
            return 7.5

        search_plans(candidates, damage, reserve)
        assert 0 < len(candidates.tried) <= 2
        (cut,) = candidates.session.budget.cut
        assert cut == f"search: {len(candidates.tried)} plans scored, 4 were allowed"


def test_where_nothing_is_faster_nothing_is_searched(tmp_path, monkeypatch):
    with Store(tmp_path / "a.db") as store:
        candidates = pool(store)
        monkeypatch.setattr(candidates, "of", lambda plan: 1 / 0)
        (damage,) = measure_damage(candidates)
        search_plans(candidates, damage)
    assert candidates.tried == {}
