"""Batches: the arguments of a call, positional or by name; everything else is refused."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from attnpass.batch import call, check_batches, fewer, items
from attnpass.errors import OptionError


def run(a, b=2):
    return a, b


def test_a_batch_is_called_by_position_or_by_name():
    assert call(run, (1,)) == (1, 2)
    assert call(run, (1, 3)) == (1, 3)
    assert call(run, {"b": 4, "a": 1}) == (1, 4)


@pytest.mark.parametrize(
    "inputs", [[(1,)], ((1,), (2,)), [{"a": 1}], TensorDataset(torch.ones(3, 2))]
)
def test_sequences_of_batches_pass(inputs):
    check_batches(inputs, "calibrate")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (iter([(1,)]), "expected a sequence of batches to calibrate on, got list_iterator"),
        ([], "expected at least one batch of inputs to calibrate on, got none"),
        ([torch.ones(2)], "got Tensor; one argument x is"),
        (torch.ones(2, 2), "got Tensor; one argument x is"),
    ],
)
def test_everything_else_is_refused(inputs, message):
    with pytest.raises(OptionError, match=message):
        check_batches(inputs, "calibrate")


def test_none_at_all_may_be_allowed():
    check_batches([], "select", empty=True)
    with pytest.raises(OptionError, match="got NoneType"):
        check_batches(None, "select", empty=True)


def test_the_first_items_of_a_batch():
    ids, mask, places = torch.arange(12).view(4, 3), torch.ones(4, 1, 3), torch.arange(3)[None]
    batch = {"ids": ids, "mask": [mask], "places": places, "flag": True}
    assert items(batch) == 4 and items((True,)) == 0
    found = fewer(batch, 2)
    assert found["ids"].equal(ids[:2]) and found["mask"][0].shape == (2, 1, 3)
    assert found["places"] is places and found["flag"] is True
    assert fewer(batch, 0) is fewer(batch, 4) is batch
