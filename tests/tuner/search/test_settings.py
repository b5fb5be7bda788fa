"""Settings out of range, and what an effort allows."""

from __future__ import annotations

import pytest
from tuning import settings

from attnpass.errors import OptionError
from attnpass.forms import check_options
from attnpass.tuner.search.settings import CHOICES, EFFORT, USUAL


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"effort": "slow"}, "expected effort of quick, full, got 'slow'"),
        ({"forms": ("hydr",)}, "expected forms of sigmoid, relu, hydra.*got hydr"),
        ({"max_drop": 1.5}, "expected max-drop in 0..1, got 1.5"),
    ],
)
def test_settings_out_of_range(more, message):
    with pytest.raises(OptionError, match=message):
        settings(**more)


def test_trials_replace_those_of_the_effort():
    assert settings(trials=0).limits == EFFORT["quick"]
    assert settings(trials=7, effort="full").limits == {**EFFORT["full"], "trials": 7}


def test_every_choice_is_a_form_with_options_that_it_takes():
    for form, options in CHOICES.values():
        check_options(form, options)
    assert set(USUAL) < set(CHOICES)
