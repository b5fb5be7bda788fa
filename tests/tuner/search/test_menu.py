"""The menu: names stand for forms with options, groups for several, each once."""

from __future__ import annotations

import pytest

from attnpass.errors import OptionError
from attnpass.forms import check_options
from attnpass.kernels.activations import RELU_FAMILY
from attnpass.tuner.search.menu import FULL, GROUPS, POINTWISE, USUAL, form_of, menu


@pytest.mark.parametrize(
    ("name", "form", "options"),
    [
        ("hydra", "hydra", {}),
        ("softmax", "softmax", {}),
        ("gelu", "relu", {"h": "gelu"}),
        ("relu  alpha=0.5", "relu", {"alpha": 0.5}),
        ("gelu alpha=0.5 L=keys", "relu", {"h": "gelu", "alpha": 0.5, "L": "keys"}),
        ("skipat r=0.5", "skipat", {"r": 0.5, "kernel": 3}),
        ("skipat r=0.5 kernel=7", "skipat", {"r": 0.5, "kernel": 7}),
    ],
)
def test_a_name_is_a_form_with_options(name, form, options):
    assert form_of(name) == (form, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hydr", "expected forms of usual, all.*got hydr"),
        ("skipat 0.5", "expected options like r=0.5 in 'skipat 0.5', got '0.5'"),
        ("skipat q=1", "expected options of form skipat"),
        ("skipat r=99", "expected r from 0 to 8"),
        ("relu h=tanh", "expected h in relu"),
        ("", "expected forms of"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(OptionError, match=message):
        menu([name])


def test_groups_are_their_choices_and_the_same_choice_is_one():
    assert menu(["usual", "relu h=relu", "hydra"]) == (*USUAL, "relu h=relu")
    assert menu(["gelu", "relu h=gelu", "gelu "]) == ("gelu",)
    assert menu(["all"]) == FULL and set(USUAL) < set(FULL)
    with pytest.raises(OptionError, match="got none"):
        menu([])


def test_every_choice_is_a_form_with_options_that_it_takes():
    for choices in GROUPS.values():
        for form, options in map(form_of, choices):
            check_options(form, options)
    assert len(POINTWISE) == 7
    found = {form_of(c)[1].get("h", form_of(c)[0]) for c in POINTWISE}
    assert found == {"sigmoid", *RELU_FAMILY}
