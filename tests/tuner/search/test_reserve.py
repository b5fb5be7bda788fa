"""What the last stages of a run will take."""

from __future__ import annotations

import math
from types import SimpleNamespace

from tuning import settings

from attnpass.tuner.search.budget import Budget
from attnpass.tuner.search.reserve import COMPILE_S, MARGIN, Reserve


def reserve(budget: float, asked=(), **more) -> Reserve:
    clock = lambda: 0.0  # noqa: E731
    session = SimpleNamespace(budget=Budget(budget, clock))
    inspection = SimpleNamespace(settings=settings(**more))
    parts = {"held_out": [1.0] * 600, "selection": [1.0] * 400, "seconds_selection": 4.0}
    baseline = SimpleNamespace(sizes=[50] * 20, seconds=10.0, **parts)
    latencies = SimpleNamespace(session=session, inspection=inspection, asked=list(asked))
    return Reserve(latencies, baseline)


def test_a_plan_takes_the_dearest_of_the_first_requests_and_its_scores():
    assert reserve(100.0).per_plan == COMPILE_S + 6.0
    assert reserve(100.0, [(5, 50.0), (2, 24.0)]).per_plan == 12.0 + 6.0


def test_finalists_are_as_many_as_the_budget_can_judge():
    found = reserve(1000.0, [(5, 50.0)])
    assert found.needed() == MARGIN * 4 * 16.0
    assert found.affordable() == int(1000 / MARGIN / 16.0) - 2
    found.distilling = 300.0
    assert found.needed() == 300.0 + MARGIN * 4 * 16.0
    assert reserve(1.0).affordable() == 1, "one at least"
    endless = reserve(math.inf)
    assert endless.needed() == 0.0 and endless.affordable() == settings().limits["finalists"]


def test_distillation_leaves_half_of_the_time_to_the_search():
    found = reserve(1000.0, [(5, 50.0)])
    finalists = MARGIN * 4 * 16.0
    found.share(300.0)
    assert found.distilling == 300.0 and found.needed() == 300.0 + finalists
    found.share(2000.0)
    assert found.distilling == (1000.0 - finalists) / 2
    tight = reserve(10.0)
    tight.share(300.0)
    assert tight.distilling == 0.0


def test_the_outlook_is_told_and_never_longer_than_the_budget():
    assert reserve(math.inf, trials=10).outlook() == "the rest will take about 4.3 min at most"
    assert reserve(60.0).outlook() == "the rest will take about 60 s at most of 60 s left"
    longer = reserve(math.inf, trials=10, recover="distil", recover_budget=6000.0)
    assert longer.outlook() == "the rest will take about 1.7 h at most"
    steps = reserve(math.inf, trials=10, recover="distil", recover_steps=900)
    beside = "at most, beside 900 steps of distillation"
    assert steps.outlook() == f"the rest will take about 4.3 min {beside}"
