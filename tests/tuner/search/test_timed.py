"""What interleaved times decide: settled, reliable, or other than what is stored."""

from __future__ import annotations

import pytest
from tuning import series

from attnpass.tuner.search.timed import Timed, differing, has_twins, timed_of

pytestmark = pytest.mark.usefixtures("little_noise")


def test_what_a_short_run_has_otherwise():
    def timed(*ms: float) -> Timed:
        return Timed([[x] * 9 for x in ms], 0.0)

    stored = timed(10, 10, 5)
    assert differing(stored, timed(10, 10, 5)) == differing(stored, timed(12, 12, 6)) == ""
    assert differing(stored, timed(192, 192, 96)).startswith("the unchanged model takes 192.00 ms")
    assert differing(stored, timed(10, 10, 8)).startswith("a speed-up of 1.25x")
    assert differing(Timed(stored.times, 1.0), timed(10, 10, 8)) == "", "within the noise"


def test_times_are_settled_when_more_would_change_no_decision():
    def timed(spread: float, *ms: float) -> Timed:
        rows = [series(30, x, spread, i) for i, x in enumerate((10.0, 10.0, *ms))]
        return timed_of({"times": rows}, None)

    assert timed(0.005, 5.0).settled, "far from 1, and narrow"
    assert not timed(0.05, 9.9).settled, "it may be on either side"
    assert timed(0.002, 9.99).settled, "so near to 1 that it does not matter which side"
    assert not timed(0.5, 5.0).settled, "noise"
    assert not Timed([[1.0] * 30] * 3).settled, "nothing tells the noise"


def test_a_stored_measurement_begins_with_twins_or_not():
    assert has_twins(None) and has_twins([None, None, None]) and not has_twins([None])
    value = {"times": [[2.0] * 9, [2.0] * 9, [1.0] * 9], "peaks": [1.0, 1.0, 2.0]}
    found = timed_of(value, [None, None, None])
    assert found.floor == 0.0 and found.reliable and found.peaks == [1.0, 1.0, 2.0]
    assert found.ratio(2).median == 2.0 and found.ratio(2).pairs == 9
    assert timed_of(value, [None]).floor is None and found.conditions is None
