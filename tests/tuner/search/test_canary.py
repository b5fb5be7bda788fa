"""Which items the canary evaluates, and which differences it takes for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_tasks import retrieval, tiny

from attnpass.tuner.search.canary import (
    Canary,
    canary_batches,
    difference,
    score_difference,
    take,
)

ONE = Canary([0, 5], [1.0, 0.0], [2.0, 0.5, 1.0, -0.25], 1e-6)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([10] * 6, [0, 5]),
        ([1] * 15, [0, 2, 4, 6, 8, 10, 12, 14]),
        ([60], [0]),
        ([4, 0, 4], [0, 2]),
        ([3] * 4, [0, 2, 3]),
    ],
)
def test_eight_items_or_more_evenly_spread(sizes, wanted):
    found = canary_batches(tiny(1), sizes, range(len(sizes)))
    assert found == wanted and sum(sizes[i] for i in found) >= min(8, sum(sizes))


def test_where_items_are_judged_together_all_are_evaluated():
    assert canary_batches(retrieval(), [10] * 6, range(6)) == list(range(6))


def test_a_canary_is_the_same_twice_and_another_for_another_model():
    task = tiny()
    first = take(task, task.model, [0, 5])
    assert difference(first, take(task, task.model, [0, 5]), range(20)) == ""
    assert first.scores == [1.0] * 20 and len(first.outputs) == 4 and first.noise < 1e-5
    # every answer is still right
    task.model.head.bias.data += 1e-3
    again = take(task, task.model, [0, 5])
    assert again.scores == first.scores
    assert difference(first, again, range(20)) == "outputs of batch 0"
    doubled = take(task, lambda x: 2 * task.model(x), [0, 5])
    assert doubled.scores == first.scores
    assert difference(again, doubled, range(20)) == "outputs of batch 0"


def test_a_pooled_task_is_scored_at_once():
    task = retrieval()
    found = take(task, task.model, range(6))
    assert found.scores == [1.0] * 60 and len(found.outputs) == 12


def test_scores_of_0_and_1_are_equal_or_not():
    assert score_difference([1.0, 0.0], [1.0, 0.0], [3, 4], 1e-2) == ""
    assert score_difference([1.0, 0.0], [1.0, 1.0], [3, 4], 1e-2) == "item 4: 1, stored 0"
    assert score_difference([1.0], [1.0, 1.0], [3], 0.0) == "2 scores, stored 1"


def test_other_scores_may_differ_by_noise():
    old = [0.5, -2.0]
    assert score_difference(old, [0.5 + 1e-6, -2.0], [3, 4], 1e-6) == ""
    assert score_difference(old, [0.25, -2.0], [3, 4], 1e-6) == "item 3: 0.25, stored 0.5"
    assert score_difference(old, [0.5, float("nan")], [3, 4], 1e-6) == "item 4: nan, stored -2"


def test_outputs_that_are_not_numbers_or_of_other_batches_differ():
    assert difference(ONE, ONE, [0, 1]) == ""
    for other in ([2.0, 0.5, 2.0, -0.5], [2.0, float("nan"), 1.0, -0.25]):
        assert difference(ONE, replace(ONE, outputs=other), [0, 1]).startswith("outputs of batch")
    assert difference(ONE, replace(ONE, batches=[0, 4]), [0, 1]) == "other batches"


def test_the_noise_is_that_of_the_outputs_precision():
    task = tiny()
    low = take(task, lambda x: task.model(x).bfloat16(), [0])
    assert take(task, task.model, [0]).noise < 1e-5 < low.noise <= 1e-2
    counts = replace(task, score=lambda output, target: (output == target).double())
    assert take(counts, lambda x: torch.ones(len(x), dtype=torch.long), [0]).noise == 0


def test_a_canary_is_stored_as_it_is():
    assert Canary.from_dict(ONE.as_dict()) == ONE
    for broken in ({}, {**ONE.as_dict(), "scores": None}, {**ONE.as_dict(), "noise": "x"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Canary.from_dict(broken)
