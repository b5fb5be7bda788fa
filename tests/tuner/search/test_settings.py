"""Settings out of range, and what an effort allows."""

from __future__ import annotations

import pytest
from tuning import settings

from attnpass.errors import OptionError
from attnpass.tuner.measure import Ratio
from attnpass.tuner.search.menu import FULL, USUAL
from attnpass.tuner.search.plan_row import PlanLatency
from attnpass.tuner.search.settings import EFFORT


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"effort": "slow"}, "expected effort of quick, full, got 'slow'"),
        ({"forms": ("hydr",)}, "expected forms of usual.*got hydr"),
        ({"objective": "learn"}, "expected objective of inference, train, got 'learn'"),
        ({"budget": -1.0}, "expected budget >= 0, got -1"),
        ({"max_memory_mb": float("nan")}, "expected max-memory-mb >= 0, got nan"),
        ({"tiles": -1}, "expected tiles >= 0, got -1"),
        ({"max_drop": 1.5}, "expected max-drop in 0..1, got 1.5"),
    ],
)
def test_settings_out_of_range(more, message):
    with pytest.raises(OptionError, match=message):
        settings(**more)


def test_trials_replace_those_of_the_effort():
    assert settings(trials=0, tiles=None).limits == EFFORT["quick"]
    asked = settings(trials=7, tiles=0, effort="full").limits
    assert asked == {**EFFORT["full"], "trials": 7, "tiles": 0}


def test_the_menu_follows_the_effort_where_no_forms_are_named():
    assert settings(forms=()).forms == USUAL
    assert settings(forms=(), effort="full").forms == FULL
    assert settings(forms=("softmax",)).forms == ("softmax",)


def test_distilling_has_half_of_the_budget_where_its_time_is_not_named():
    assert settings().recover_budget == 300.0
    assert settings(budget=60.0).recover_budget == 30.0
    assert settings(budget=60.0, recover_budget=7.0).recover_budget == 7.0
    assert settings(budget=60.0).recover_amount == 30.0


def test_steps_of_distilling_take_the_place_of_times():
    found = settings(recover_steps=500)
    assert found.recover_amount == 500 and found.recover_budget == 0.0
    for times in ({"budget": 60.0}, {"recover_budget": 5.0}):
        with pytest.raises(OptionError, match="expected recover-steps without budget"):
            settings(recover_steps=500, **times)
    with pytest.raises(OptionError, match="expected recover-steps >= 0, got -1"):
        settings(recover_steps=-1)


def test_a_plan_keeps_the_limits_that_are_given_and_known():
    known = PlanLatency(5.0, Ratio(2.0, 1.9, 2.1, 30), None, 7.0, 100.0)
    assert settings().allows(known)
    for name, most in (("max_ms", 5.0), ("max_p95_ms", 7.0), ("max_memory_mb", 100.0)):
        assert settings(**{name: most}).allows(known)
        assert not settings(**{name: most - 1}).allows(known)
    assert settings(max_memory_mb=1.0).allows(PlanLatency(5.0, known.ratio))
