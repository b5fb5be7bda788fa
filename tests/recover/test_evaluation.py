"""The selection decides what is kept and when a stage ends, in little time."""

from __future__ import annotations

import torch
from recovery_problems import Scripted, batches, trained


def test_a_stage_that_no_longer_improves_ends_and_its_best_is_kept():
    # while the rate is high, in the first half, nothing ends a stage
    looks = [9.0, 3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5]
    objective = Scripted(looks)
    stage = trained(objective, steps=100).done
    assert stage.steps == 80 and stage.kept == {"|a": 20} and stage.best == {"|a": 1.0}
    assert [loss for _, loss in stage.looks] == looks[:9]
    assert torch.equal(objective.value.detach(), objective.seen[2])
    assert not torch.equal(objective.seen[2], objective.seen[8])


def test_a_stage_goes_on_while_it_comes_back_from_a_high_rate():
    looks = [1.0, *(9.0 - i / 2 for i in range(10))]
    stage = trained(Scripted(looks), steps=100).done
    assert stage.steps == 100 and stage.kept == {"|a": 0}


def test_what_it_starts_from_may_be_the_best():
    objective = Scripted([0.5] + [1.0] * 20)
    stage = trained(objective, steps=20).done
    assert stage.kept == {"|a": 0} and stage.best == {"|a": 0.5}
    assert not objective.value.detach().any()


def test_looks_take_a_small_share_of_a_budget_of_time(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("attnpass.recover.trainer.time.monotonic", lambda: float(next(clock)))
    seen = []
    for budget in (1000.0, 100.0):
        objective = Scripted([1.0 / (i + 1) for i in range(10_000)])
        stage = trained(objective, selection=batches(8), budget=budget).done
        # the first run of all is not timed
        seen.append((len(objective.seen) - 1) / len(stage.looks))
    # the clock ticks once a reading: 2 % of 1000 hold all 8 batches, of 100 the third is too late
    assert seen == [8.0, 3.0]
