"""What a run depends on is part of its keys; bad tasks are one line."""

from __future__ import annotations

import random

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
        other, _ = opened(store, task=f"{TASKS}:half_scores")
        assert store.get("accuracy", "baseline scores", other.context) == (None, "score changed")


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
        why = {"head": "model, weights", "program": "model, program"}.get(change, "data")
        missed = store.get("accuracy", "baseline scores", other.context)
        assert missed == (None, f"{why} changed")


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("nan_scores", TaskError, "expected finite scores, got 10"),
        ("scalar_score", TaskError, "expected Task.score to return one number per item"),
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


def test_other_calibration_or_recovery_data_is_another_run(tmp_path, monkeypatch):
    task = load_task(f"{TASKS}:tiny")
    monkeypatch.setattr("attnpass.tuner.search.inspection.load_task", lambda _, limit: task)
    (batch,) = task.calibration[0]
    with Store(tmp_path / "a.db") as store:
        found, distilled = (opened(store, recover=x)[0] for x in ("calibrate", "distil"))
        task.recovery = [(batch,)]
        assert opened(store)[0].run == found.run, "only distillation reads it"
        assert opened(store, recover="distil")[0].run != distilled.run
        task.calibration = [(batch + 1,)]
        other, _ = opened(store)
    assert other.run != found.run and other.context == found.context


def test_a_recovery_set_that_augments_is_known_by_what_it_is_made_of(tmp_path, monkeypatch):
    class Augmented(list):
        def __getitem__(self, i):
            return (super().__getitem__(i)[0] + random.random(),)

    task = load_task(f"{TASKS}:tiny")
    monkeypatch.setattr("attnpass.tuner.search.inspection.load_task", lambda _, limit: task)
    runs = []
    with Store(tmp_path / "a.db") as store:
        for add in (0, 0, 1):
            task.recovery = Augmented([(task.calibration[0][0] + add,)])
            runs.append(opened(store, recover="distil")[0].run)
    assert runs[0] == runs[1] != runs[2]


def test_the_id_says_what_is_measured_and_not_how_long_it_may_take(tmp_path):
    with Store(tmp_path / "a.db") as store:
        found, _ = opened(store)
        same, _ = opened(store, timeout=1.0, refresh=True)
        other, _ = opened(store, seed=1)
    assert found.run == same.run != other.run
    assert "timeout" not in found.asked and found.legal["blocks.0.attn"] == ["hydra"]
