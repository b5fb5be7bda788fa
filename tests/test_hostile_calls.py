"""A sample of ``hostile_calls.py``, and that it notices a check that is missing."""

from __future__ import annotations

import hostile_calls
import pytest


@pytest.mark.slow
def test_a_sample_of_calls():
    found = hostile_calls.many(["--seed", "7"], 60)
    assert found.pop("failures") == []
    assert found["valid"] > 20 and found["refused"] > 20
    assert found["valid"] + found["refused"] == 60


MISSING = {
    "key heads that do not divide": "heads % groups if groups > 0 else heads > 0",
    "tau too short": "x.dim() != 1 or _sizes(x, traced)[0] != size",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MISSING)
def test_a_missing_check_is_noticed(fault):
    given = ["--seed", "3", "--fault", fault]
    mutation = ["--mutate", "kernels.check", f"if {MISSING[fault]}:", "if False:"]
    found = hostile_calls.many([*given, *mutation], 6, most=1)
    assert found["wrong"] + found["crashed"] > 0
    assert found["refused"] < 6
