"""Scores, their split, early stops, and how far outputs moved."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tuning import TASKS

from attnpass.task import load_task
from attnpass.tuner.measure.accuracy import divergence, first_tensor, scores, split


def test_split_keeps_600_for_judging_else_crosses():
    big = split([50] * 20)
    assert (len(big.selection), len(big.held_out), big.crossed) == (8, 12, False)
    assert not set(big.selection) & set(big.held_out)
    small = split([50] * 10)
    assert small.crossed
    assert small.selection == small.held_out == tuple(range(10))


class FakeTask:
    pooled = False

    def __init__(self, rows):
        self.validation = [((torch.tensor(r),), None) for r in rows]

    @staticmethod
    def score(output, target):
        return output.double()


def test_early_stop_only_where_the_limit_is_out_of_reach():
    base = torch.ones(30).double()
    bad = FakeTask([[0.0] * 10, [1.0] * 10, [1.0] * 10])
    found, complete = scores(bad, lambda x: x, [0, 1, 2], base=base, max_drop=0.2)
    assert (len(found), complete) == (10, False)
    found, complete = scores(bad, lambda x: x, [0, 1, 2], base=base, max_drop=0.4)
    assert (len(found), complete) == (30, True)
    # items that the baseline missed may still be won back
    base[10:] = 0
    found, complete = scores(bad, lambda x: x, [0, 1, 2], base=base, max_drop=0.2)
    assert complete


def test_classes_that_are_ruled_out_have_no_divergence():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    out = x.clone()
    out[:, 3] = -math.inf
    moved = out + 0.1 * x.flip(1)
    task = SimpleNamespace(outputs="logits", validation=[((out,), None), ((moved,), None)])
    same, other = (divergence(task, lambda x: x, [out], [i]) for i in (0, 1))
    p, q = (t[:, [0, 1, 2, 4]].log_softmax(1) for t in (out, moved))
    assert same == 0 and other == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()))


def test_pooled_scores_see_the_whole_split():
    task = load_task(f"{TASKS}:retrieval")
    every = range(len(task.validation))
    found, complete = scores(task, task.model, every)
    assert complete and found.tolist() == [1.0] * 60
    # a constant answer finds one of the whole split, not one of every batch
    flat, _ = scores(task, lambda x: torch.zeros(len(x), 10), every)
    assert float(flat.sum()) == 1.0


def test_the_first_tensor_of_an_output_is_taken_and_none_is_an_error():
    x, y = torch.zeros(1), torch.ones(1)
    assert first_tensor({"hidden": (x, y)}) is x
    with pytest.raises(ValueError, match="expected a model that returns a tensor, got none"):
        first_tensor((1, "a"))
