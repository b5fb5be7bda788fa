"""Values by position: comparisons, casts, selections."""

from __future__ import annotations

import math

import pytest
import torch

from attnpass.matching.cells import (
    Cells,
    Unread,
    compared,
    filled,
    joined,
    number,
    position,
    related,
    selected,
    truth,
)
from attnpass.matching.inequalities import FALSE, TRUE, at_least_zero

ROW, COLUMN = position(2), position(1)


@pytest.mark.parametrize("name", ["ge", "gt", "le", "lt", "eq", "ne"])
@pytest.mark.parametrize("pair", [(1, 2), (2, 2), (3, 2), (-math.inf, 0), (0.5, 1), (1, 0.5)])
def test_known_numbers_compare_as_python_does(name, pair):
    wanted = getattr(torch, name)(*(torch.tensor(x, dtype=torch.float64) for x in pair))
    assert compared(name, *pair) == (TRUE if wanted else FALSE)


def test_a_position_beside_a_fraction_is_rounded_to_the_safe_side():
    assert compared("ge", COLUMN, 1.5) == at_least_zero(COLUMN - 2)
    assert compared("lt", COLUMN, 1.5) == at_least_zero(1 - COLUMN)
    assert compared("gt", COLUMN, -math.inf) == TRUE and compared("ge", COLUMN, math.inf) == FALSE


def test_values_are_whole_numbers_or_floats_that_are_none():
    assert number(-1e9) == -(10**9) and isinstance(number(2.0), int) and number(0.5) == 0.5
    for wrong in (math.nan, None, "x"):
        with pytest.raises(Unread):
            number(wrong)


def test_a_cast_keeps_the_value_or_is_refused():
    assert filled((3,), 1e9, torch.float64).cast(torch.float16).cases[0][1] == math.inf
    with pytest.raises(Unread):
        filled((3,), 0.5, torch.float64).cast(torch.int64)
    places = related("ge", filled((3, 3), 1, torch.int64), filled((3,), 0, torch.int64))
    assert places.dtype == torch.bool and places.cast(torch.float32).cases[0][1] == 1


def test_positions_are_not_kept_in_few_bits():
    cells = selected(
        truth((4, 4), at_least_zero(ROW)),
        filled((4, 4), 1, torch.int64),
        filled((), 0, torch.int64),
        torch.int64,
    )
    assert cells.moved((4, 4), {1: COLUMN + 300}).shape == (4, 4)
    with pytest.raises(Unread):
        Cells((4,), ((TRUE, COLUMN),), torch.int64).cast(torch.int8)


def test_a_selection_holds_where_its_parts_do():
    mask = truth((4, 4), at_least_zero(ROW - COLUMN))
    out = selected(mask, filled((), 1, torch.int64), filled((4, 4), 0, torch.int64), torch.int64)
    assert out.holds == at_least_zero(ROW - COLUMN)


def test_shapes_meet_where_sizes_are_equal_or_one():
    assert joined((3, 1), (4,)) == (3, 4) and joined((), (2,)) == (2,)
    with pytest.raises(Unread):
        joined((3,), (4,))
