"""Each option has bounds, which are checked before anything is built."""

from __future__ import annotations

import math

import pytest

from attnpass.errors import OptionError
from attnpass.forms import OPTIONS, Pointwise, SkipAt, check_options
from attnpass.forms.options import VALUES, check_value

HUGE = 10**400
EDGES = {
    "r": ([0, 0.5, 2.0, 8], [-1e-9, 8.1, 1e9, HUGE, math.nan, math.inf, "2", None, True, [1]]),
    "kernel": ([1, 5, 31], [0, 2, 33, -1, 10_000_001, HUGE, 5.0, "5", None, True]),
    "L": (["keys", "visible", 1e-3, 197, 1e9], [0, 1e-4, 2e9, HUGE, math.nan, "all", None, {}]),
    "alpha": ([-4, 0, 0.5, 4.0], [-5, 5, HUGE, -HUGE, math.nan, "1", None, False]),
    "approximate": (["none", "tanh"], ["", None, 1, ["tanh"]]),
    "h": (["relu", "gelu"], ["sigmoid", "swish", None, 1, []]),
    "learns": ([True, False], [0, 1, None, "true"]),
}


def test_every_option_has_bounds_and_edges():
    names = {name for options in OPTIONS.values() for name in options}
    assert names == set(VALUES) == set(EDGES)


@pytest.mark.parametrize("name", EDGES)
def test_the_edges_of_each_option(name):
    good, bad = EDGES[name]
    for value in good:
        check_value(name, value)
    for value in bad:
        with pytest.raises(OptionError, match=f"expected {name} .*, got ") as caught:
            check_value(name, value)
        assert len(str(caught.value)) < 300


def test_a_default_of_none_may_be_given():
    check_options("sigmoid", {"L": None})
    with pytest.raises(OptionError, match="expected alpha"):
        check_options("relu", {"alpha": None})


@pytest.mark.parametrize(
    "make",
    [
        lambda: SkipAt(64, r=1e9),
        lambda: SkipAt(64, r=1, kernel=10_000_001),
        lambda: Pointwise(1, 1, 1, h="relu", length=HUGE),
        lambda: Pointwise(1, 1, 1, h="relu", alpha=HUGE),
        lambda: Pointwise(1, 1, 1, h=["relu"]),
    ],
)
def test_the_modules_check_before_they_are_built(make):
    with pytest.raises(OptionError, match="expected"):
        make()


def test_an_unknown_form_or_option_of_any_type():
    with pytest.raises(OptionError, match="expected a form of"):
        check_options(["relu"], {})
    with pytest.raises(OptionError, match="got typo"):
        check_options("relu", {"typo": 1})
