"""The MLflow run: settings, metrics, files, in a store of one folder."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient
from rows_of_plans import ROWS, inspected, result_of

from attnpass.tuner.track.mlflow_run import EXPERIMENT, MlflowRun


@pytest.fixture
def place(tmp_path):
    """Where runs go: files of one folder."""
    return (tmp_path / "mlruns").as_uri()


def told(place, rows, status="done", files=()) -> MlflowRun:
    copy = MlflowRun(inspected(), place)
    for row in rows:
        copy.judged(row)
    copy.finished(result_of(rows, status), dict(files))
    return copy


def test_settings_metrics_and_files(tmp_path, place):
    for name in ("plan.json", "plan.safetensors"):
        (tmp_path / name).write_text("{}")
    told(place, [*ROWS, ROWS[0]], files={"plan": str(tmp_path / "plan.json"), "picture": "none"})
    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"task": "t", "max_drop": "0.02", "sites": "2"}
    assert run.info.status == "FINISHED"
    found = run.data.metrics
    assert (found["baseline_ms"], found["ceiling"], found["tried"]) == (40.0, 1.5, 3.0)
    steps = client.get_metric_history(run.info.run_id, "estimate_ms")
    assert [(m.step, m.value) for m in steps] == [(0, 20.0), (1, 30.0)]
    kept = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert kept == {"result.json", "plan.json", "plan.safetensors"}
    text = client.download_artifacts(run.info.run_id, "result.json", str(tmp_path))
    with open(text) as file:
        assert json.load(file)["run"] == "r1"


def test_the_best_plan_is_among_the_metrics_and_the_same_run_goes_on(place):
    told(place, ROWS[:1], "interrupted")
    told(place, ROWS)
    client = MlflowClient(tracking_uri=place)
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.data.metrics["best_speed_up"] == 1.3
    assert run.data.metrics["best_held_out_drop"] == 0.01
    assert run.info.status == "FINISHED"
