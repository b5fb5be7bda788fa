"""The time of a run, on a clock of our own."""

from __future__ import annotations

import math

import pytest

from attnpass.tuner.search.budget import Budget, minutes


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_of_a_budget_and_of_a_stage():
    clock = Clock()
    budget = Budget(60.0, clock)
    assert budget.left == 60.0
    stage, short, long = budget.stage(), budget.stage(most=2.0), budget.stage(2.0)
    assert (stage(), short(), long()) == (6.0, 2.0, 60.0)
    clock.now += 5
    assert (budget.left, stage(), short()) == (55.0, 1.0, 0.0)
    clock.now += 100
    assert (budget.left, stage()) == (0.0, 0.0)
    assert budget.stage()() == 0.0, "nothing is left for another"


def test_a_budget_of_any_time_has_stages_of_any_time():
    assert Budget().left == math.inf == Budget().stage()()
    assert Budget(clock=Clock()).stage(most=3.0)() == 3.0


@pytest.mark.parametrize(
    ("seconds", "told"), [(4.2, "4 s"), (99, "99 s"), (210, "3.5 min"), (7200, "2.0 h")]
)
def test_times_for_people(seconds, told):
    assert minutes(seconds) == told


def test_the_time_until_a_budget_is_exceeded_by_a_share():
    clock = Clock()
    budget = Budget(100.0, clock)
    assert budget.until(0.08) == pytest.approx(108.0)
    clock.now += 103
    assert budget.left == 0.0 and budget.until(0.08) == pytest.approx(5.0)
    clock.now += 10
    assert budget.until(0.08) == 0.0 and Budget().until(0.08) == math.inf


def test_what_has_much_less_time_than_it_was_to_have_is_told():
    budget = Budget(100.0, Clock())
    budget.shorten("a", 9.5, 10.0)
    budget.shorten("b", 5.0, 10.0)
    assert budget.cut == ["b: 5 s of 10 s"]
