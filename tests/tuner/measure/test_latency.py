"""The timing protocol: ratios inside their intervals, noise, and the order of the runs."""

from __future__ import annotations

import pytest

from attnpass.tuner.measure.latency import floor, interleave, median_ms, ratio


def test_ratio_is_the_median_of_pairs_inside_its_interval():
    base = [2.0, 2.2, 2.1, 2.0, 2.3, 2.0, 2.1, 2.0, 2.2, 2.1]
    found = ratio(base, [b / 1.5 for b in base])
    assert found.median == pytest.approx(1.5)
    noisy = ratio(base, [1.0, 1.3, 0.9, 1.1, 1.2, 1.0, 1.1, 0.8, 1.0, 1.2])
    assert noisy.low <= noisy.median <= noisy.high
    assert noisy.low < noisy.high


def test_floor_of_identical_series_is_zero_and_grows_with_noise():
    same = [1.0] * 20
    assert floor(same, same) == 0
    assert floor(same, [1.0, 1.2] * 10) > 0.1


def test_interleave_runs_every_candidate_every_round():
    calls: list[str] = []
    times = interleave([lambda: calls.append("a"), lambda: calls.append("b")], rounds=4, warmup=1)
    assert [len(t) for t in times] == [4, 4]
    assert calls[2:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_series_that_are_not_paired_are_an_error():
    for base, candidate in (([1.0], []), ([], [])):
        with pytest.raises(ValueError, match=f"expected paired times, got {len(base)} and 0"):
            ratio(base, candidate)


def test_a_stopwatch_of_its_own_takes_the_times():
    ticks = []
    times = interleave(
        [lambda: None] * 2,
        rounds=3,
        stopwatch=lambda run: 7.0,
        synchronise=lambda: ticks.append("wait"),
        tick=lambda: ticks.append("round"),
    )
    assert times == [[7.0] * 3] * 2 and ticks == [*["wait"] * 6, *["round"] * 3]


def test_the_median_of_an_even_number_is_the_larger_one():
    assert median_ms([3.0, 1.0, 2.0]) == 2.0 and median_ms([4.0, 1.0, 2.0, 3.0]) == 3.0
