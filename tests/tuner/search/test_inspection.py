"""What a run depends on is part of its keys; bad tasks are one line."""

from __future__ import annotations

import pytest
import torch
from tuning import QUIET, TASKS, opened, settings

from attnpass.errors import CaptureError, TaskError
from attnpass.store import Store
from attnpass.task import load_task
from attnpass.tuner.search import execute, inspect_task


def test_changed_data_and_weights_are_misses(tmp_path):
    with Store(tmp_path / "a.db") as store:
        found, session = opened(store)
        session.keep("accuracy", "baseline scores", found.context, {})
        assert store.get("accuracy", "baseline scores", found.context)[0] is not None
        changed = {**found.context, "weights": "other"}
        assert store.get("accuracy", "baseline scores", changed) == (None, "weights changed")
        other, _ = opened(store, task=f"{TASKS}:nan_scores")
        assert store.get("accuracy", "baseline scores", other.context) == (None, "data changed")


@pytest.mark.parametrize("change", ["pooled", "outputs", "head", "program"])
def test_what_else_decides_a_score_is_part_of_its_key(tmp_path, change, monkeypatch):
    task = load_task(f"{TASKS}:tiny")
    if change == "pooled":
        task.pooled = True
    elif change == "outputs":
        task.outputs = "features"
    elif change == "program":
        task.model.blocks[1].mlp[1] = torch.nn.ReLU()
    else:
        task.model.head.bias.data.add_(1.0)
    with Store(tmp_path / "a.db") as store:
        found, session = opened(store)
        session.keep("accuracy", "baseline scores", found.context, {})
        monkeypatch.setattr("attnpass.tuner.search.inspection.load_task", lambda _, limit: task)
        other, _ = opened(store)
        assert store.get("accuracy", "baseline scores", found.context)[0] is not None
        why = {"head": "weights", "program": "program"}.get(change, "data")
        missed = store.get("accuracy", "baseline scores", other.context)
        assert missed == (None, f"{why} changed")


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("nan_scores", TaskError, "expected finite scores, got 10"),
        ("scalar_score", TaskError, "expected score\\(\\) to return one number per item"),
        ("empty", TaskError, "at least one validation batch, got none"),
        ("one_item", TaskError, "expected two validation items or more, got 1"),
        ("not_a_task", TaskError, "return an attnpass.Task, got int"),
        ("raises", TaskError, "got ValueError: no data here"),
        ("nothing", TaskError, "expected a function nothing"),
        ("no_attention", CaptureError, "with softmax attention, found none"),
    ],
)
def test_bad_tasks_are_one_line(tmp_path, factory, error, message):
    with Store(tmp_path / "a.db") as store, pytest.raises(error, match=message) as caught:
        execute(inspect_task(settings(task=f"{TASKS}:{factory}"), store), store, QUIET)
    assert "\n" not in str(caught.value)


def test_outputs_of_a_task_are_checked():
    with pytest.raises(
        TaskError, match="expected Task.outputs of .* to be 'logits' or 'features'"
    ):
        load_task(f"{TASKS}:wrong_outputs")


def test_the_id_says_what_is_measured_and_not_how_long_it_may_take(tmp_path):
    with Store(tmp_path / "a.db") as store:
        found, _ = opened(store)
        same, _ = opened(store, timeout=1.0, refresh=True)
        other, _ = opened(store, seed=1)
    assert found.run == same.run != other.run
    assert "timeout" not in found.asked and found.legal["blocks.0.attn"] == ["hydra"]
