"""Formulas over inequalities, compared with every assignment in a small box."""

from __future__ import annotations

import itertools
import random

import pytest
import sympy

from attnpass.matching.inequalities import (
    FALSE,
    TRUE,
    TooLarge,
    at_least_zero,
    both,
    either,
    impossible,
    opposite,
)

X, Y, N = (sympy.Symbol(name, integer=True) for name in "xyn")

BOX = list(itertools.product(range(-4, 5), repeat=3))


def holds(formula, at) -> bool:
    """Whether a formula holds for the values of x, y and n."""
    values = dict(zip((X, Y, N), at, strict=True))
    return any(
        all(sum(c * values[x] for x, c in terms) + k >= 0 for terms, k in case) for case in formula
    )


def drawn(rng):
    """A random inequality."""
    return at_least_zero(sum(rng.randint(-2, 2) * s for s in (X, Y, N)) + rng.randint(-3, 3))


@pytest.mark.parametrize("seed", range(40))
def test_connectives_mean_what_they_say(seed):
    rng = random.Random(seed)
    a, b = (either(drawn(rng), both(drawn(rng), drawn(rng))) for _ in range(2))
    for at in BOX[:: rng.randint(3, 7)]:
        assert holds(both(a, b), at) == (holds(a, at) and holds(b, at))
        assert holds(either(a, b), at) == (holds(a, at) or holds(b, at))
        assert holds(opposite(a), at) != holds(a, at)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_impossible_has_no_solution(seed):
    rng = random.Random(1000 + seed)
    formula = TRUE
    for _ in range(rng.randint(2, 5)):
        formula = both(formula, drawn(rng))
    if impossible(formula):
        assert not any(holds(formula, at) for at in BOX)


def test_a_contradiction_over_three_steps_is_found():
    formula = both(at_least_zero(X - Y - 1), both(at_least_zero(Y - N), at_least_zero(N - X)))
    assert impossible(formula) and not impossible(both(at_least_zero(X - Y), at_least_zero(Y - X)))


def test_numbers_decide_themselves():
    assert at_least_zero(0) == TRUE and at_least_zero(-1) == FALSE
    assert impossible(FALSE) and not impossible(TRUE)
    assert opposite(TRUE) == FALSE and opposite(FALSE) == TRUE


def test_a_constant_is_rounded_for_whole_numbers():
    # 2 x >= 1 and 2 x <= 1 has a rational solution and no whole one
    assert impossible(both(at_least_zero(2 * X - 1), at_least_zero(1 - 2 * X)))


def test_what_is_not_linear_is_one_more_unknown():
    least = sympy.Min(X, 3)
    assert not impossible(both(at_least_zero(least - 5), at_least_zero(X)))
    assert impossible(both(at_least_zero(least - 5), at_least_zero(4 - least)))


def test_a_term_that_is_no_whole_number_is_refused():
    with pytest.raises(TooLarge):
        at_least_zero(sympy.sqrt(X) - 1)


def test_too_many_cases_are_refused():
    many = TRUE
    with pytest.raises(TooLarge):
        for i in range(9):
            many = both(many, either(at_least_zero(X - 3 * i), at_least_zero(Y + 5 * i)))
