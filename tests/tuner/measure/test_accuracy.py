"""Scores, their split, early stops, and how far outputs moved."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from tuning import TASKS

from attnpass.errors import TaskError
from attnpass.task import Metric, Task, load_task
from attnpass.tuner.measure.accuracy import divergence, first_tensor, scores, split
from attnpass.tuner.measure.rejection import Rejection, by_batch


def test_split_keeps_600_for_judging_else_crosses():
    big = split([50] * 20)
    assert (len(big.selection), len(big.held_out), big.crossed) == (8, 12, False)
    assert not set(big.selection) & set(big.held_out)
    small = split([50] * 10)
    assert small.crossed
    assert small.selection == small.held_out == tuple(range(10))


def made(rows, **metrics) -> Task:
    """A task whose model gives these scores."""
    data = [((torch.tensor(r),), None) for r in rows]
    more = {m: Metric(score) for m, score in metrics.items()}
    score = lambda output, target: output.double()  # noqa: E731
    return Task("made", nn.Identity(), *data[0][:1], [], data, score, metrics=more)


def test_scoring_stops_only_where_the_limit_is_out_of_reach():
    base, every = torch.ones(30).double(), [0, 1, 2]
    bad = made([[0.0] * 10, [1.0] * 10, [1.0] * 10])

    def scored(limit):
        rejection = Rejection(by_batch(base, [10] * 3, every), limit)
        return scores(bad, lambda x: x, every, rejection=rejection)

    found = scored(0.2)
    assert (len(found.main), found.batches, found.complete) == (10, (0,), False)
    found = scored(0.4)
    assert (len(found.main), found.batches, found.complete) == (30, (0, 1, 2), True)
    # items that the baseline missed may still be won back
    base[10:] = 0
    assert scored(0.2).complete


def test_every_metric_scores_the_same_outputs():
    task = made([[0.5, 1.0], [0.25, 0.0]], double=lambda out, y: 2 * out.double())
    found = scores(task, lambda x: x, [0, 1])
    assert found.main.tolist() == [0.5, 1.0, 0.25, 0.0]
    assert found.more["double"].tolist() == [1.0, 2.0, 0.5, 0.0]
    assert found.as_dict()["more"] == {"double": [1.0, 2.0, 0.5, 0.0]}


def test_scores_that_are_not_finite_are_an_error_or_the_worst():
    task = made([[0.5, math.nan]], other=lambda out, y: -out.double())
    with pytest.raises(TaskError, match="expected finite scores, got 1 that are NaN"):
        scores(task, lambda x: x, [0])
    found = scores(task, lambda x: x, [0], worst={"accuracy": -3.0, "other": -7.0})
    assert found.main.tolist() == [0.5, -3.0] and found.more["other"].tolist() == [-0.5, -7.0]


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
    found = scores(task, task.model, every)
    assert found.complete and found.main.tolist() == [1.0] * 60
    # a constant answer finds one of the whole split, not one of every batch
    flat = scores(task, lambda x: torch.zeros(len(x), 10), every)
    assert float(flat.main.sum()) == 1.0


def test_the_first_tensor_of_an_output_is_taken_and_none_is_an_error():
    x, y = torch.zeros(1), torch.ones(1)
    assert first_tensor({"hidden": (x, y)}) is x
    with pytest.raises(ValueError, match="expected a model that returns a tensor, got none"):
        first_tensor((1, "a"))
