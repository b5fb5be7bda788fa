"""Items to learn from and items to judge by have nothing in common."""

from __future__ import annotations

import logging

import pytest

from attnpass.errors import TaskError
from attnpass.tuner.tasks.parts import parted


def rows(*numbers):
    return [{"n": n} for n in numbers]


def number(row):
    return row["n"]


def test_a_quarter_is_learned_from_and_nothing_repeats(caplog):
    caplog.set_level(logging.INFO, logger="attnpass.tasks")
    others, mine = parted(rows(*range(100), *range(50)), None, 0, number)
    assert len(others) == 25 and len(mine) == 75
    assert {number(r) for r in others} | {number(r) for r in mine} == set(range(100))
    assert "75 items judge, 25 are learned from; 50 left out" in caplog.text
    assert parted(rows(*range(100)), None, 0, number) == (others, mine)


def test_given_items_to_learn_from_lose_those_that_judge():
    others, mine = parted(rows(*range(50)), rows(*range(40, 80)), 0, number)
    assert {number(r) for r in others} == set(range(50, 80)) and len(mine) == 50


def test_a_limit_is_a_random_choice():
    _, mine = parted(rows(*range(1000)), None, 60, number)
    assert len(mine) == 60 and max(map(number, mine)) > 500


def test_too_few_are_refused():
    with pytest.raises(TaskError, match="expected at least 40 different items to judge by, got 8"):
        parted(rows(*range(10)), None, 0, number)
    with pytest.raises(TaskError, match="expected at least 8 different items to learn from"):
        parted(rows(*range(50)), rows(1, 2), 0, number)
