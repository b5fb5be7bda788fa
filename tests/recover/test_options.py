"""Options out of range are one line."""

from __future__ import annotations

import pytest
from recovery_problems import batches, model

import attnpass
from attnpass import Plan
from attnpass.errors import OptionError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "expected steps > 0"),
        ({"budget": float("inf")}, "expected a budget of seconds > 0"),
        ({"budget": 0.0}, "expected a budget of seconds > 0"),
        ({"local": 1.5}, "expected a local share from 0 to 1"),
        ({"rank": -1}, "expected a rank >= 0"),
        ({"rate": 0.0}, "expected a rate > 0"),
        ({"outputs": "labels"}, "expected outputs 'logits' or 'features'"),
        ({"epochs": 3}, "expected options of budget, steps, .*epochs"),
    ],
)
def test_wrong_options_are_one_line(given, message):
    net = model()
    with pytest.raises(OptionError, match=message):
        attnpass.distil(**{"model": net, "plan": Plan({}), "inputs": batches(), **given})
