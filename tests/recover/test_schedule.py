"""Rates rise and fall, by steps or by a budget of time, and deltas begin later."""

from __future__ import annotations

import math

import pytest
from recovery_problems import Scripted, batches

from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.options import DistilOptions
from attnpass.recover.schedule import FORMS_FIRST, WARM_UP, Pace, batch_index, rate_factor
from attnpass.recover.stage import Stage
from attnpass.recover.trainer import Trainer


@pytest.mark.parametrize("late", [False, True])
def test_rates_rise_and_fall_and_deltas_begin_later(late):
    objective = Scripted([], late)
    rates = []
    trainer = Trainer(objective, DistilOptions(steps=100), 1.0, Checkpoint(None, ""))
    told = lambda *_: rates.append(trainer.optimiser.param_groups[0]["lr"])  # noqa: E731
    trainer.run(batches(), [], told)
    start = 15 if late else 0
    assert rates[:start] == [0.0] * start
    assert rates[start] == pytest.approx(0.05 * (0.2 if start == 0 else 0.2 * 0.938), rel=0.01)
    assert max(rates) == pytest.approx(0.05 * (0.994 if start == 0 else 0.905), rel=0.01)
    assert rates[-1] == 0.0 and rates[49] == pytest.approx(0.025)


def test_a_budget_of_time_is_kept_and_a_slow_first_step_does_not_spoil_the_rates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("attnpass.recover.trainer.time.monotonic", lambda: now[0])
    rates = []

    class Slow(Scripted):
        def losses(self, batch):
            now[0] += 1.0 if rates else 20.0
            yield from super().losses(batch)

    trainer = Trainer(Slow([]), DistilOptions(budget=240.0), 0.5, Checkpoint(None, ""))
    told = lambda *_: rates.append(trainer.optimiser.param_groups[0]["lr"])  # noqa: E731
    stage = trainer.run(batches(), [], told)
    assert stage.seconds == 120.0 and stage.total == stage.steps == 101
    assert rates[0] == 0.0 and rates[2] < rates[3] < rates[4] < rates[5]
    assert max(rates) < 0.05 and rates[-1] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("delayed", [False, True])
def test_a_rate_warms_up_and_ends_at_0(delayed):
    start = FORMS_FIRST if delayed else 0.0
    assert rate_factor(start, delayed) == 0.0 == rate_factor(1.0, delayed)
    half = rate_factor(start + WARM_UP / 2, delayed)
    assert half == pytest.approx(0.25 * (1 + math.cos(math.pi * (start + WARM_UP / 2))))
    assert rate_factor(0.5, delayed) == pytest.approx(0.5)


def test_every_epoch_takes_every_batch_once_in_an_order_of_its_own():
    orders = [[batch_index(step, 7, seed=3) for step in range(i, i + 7)] for i in (0, 7)]
    assert [sorted(order) for order in orders] == [list(range(7))] * 2
    assert orders[0] != orders[1] != [batch_index(step, 7, seed=4) for step in range(7, 14)]


def test_a_pace_by_steps_ignores_the_clock():
    stage, pace = Stage("global", total=4), Pace(4, math.inf)
    pace.count(stage)
    assert (stage.total, pace.progress(stage), pace.over(stage)) == (4, 0.25, False)
    stage.steps = 4
    assert pace.over(stage)


def test_a_pace_by_time_leaves_out_the_first_step_and_interruptions(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("attnpass.recover.schedule.time.monotonic", lambda: now[0])
    stage, pace = Stage("global"), Pace(None, 30.0)
    for seconds in (10.0, 2.0, 2.0):
        now[0] += seconds
        stage.steps += 1
        pace.count(stage)
    assert (stage.seconds, pace.first, stage.total) == (14.0, 10.0, 3 + 8)
    assert pace.progress(stage) == pytest.approx((4.0 + 2.0) / 20.0)
    now[0] += 1000.0
    pace.restart_clock()
    now[0] += 15.9
    pace.count(stage)
    assert stage.seconds == pytest.approx(29.9) and not pace.over(stage)
