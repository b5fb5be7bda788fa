"""The benchmark of slow calls, on the tiny task, whose calls are short: all of it is timed."""

from __future__ import annotations

import pytest
from scripts import slow_calls
from tuning import TINY


def test_both_stages_are_measured():
    found = slow_calls.measured(TINY, inner="eager", forms=("hydra", "skipat r=0"), effort="quick")
    assert found["items"] == 0 and set(found["forms"]) <= {"hydra", "skipat r=0"}
    seconds = found["seconds"]
    assert seconds["both"] == pytest.approx(seconds["ceiling"] + seconds["forms"])
    assert found["base_ms"] > 0 and found["ceiling"]["pairs"] >= 7
