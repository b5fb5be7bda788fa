"""A run as users start it, and its copies: all judged plans, the same again on resume."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import optuna
import pytest
from tuning import TINY, run

pytestmark = pytest.mark.slow

GIVEN = ("--inner", "eager", "--trials", "4", "--max-drop", "0.3", "--forms", "hydra,skipat r=0")


def tune(folder: Path, *more: str) -> subprocess.CompletedProcess:
    out = ("--json", "--out", str(folder / "out"))
    return run("tune", TINY, *GIVEN, *out, *more, db=folder / "a.db")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The folder of a run with a study, and its result."""
    folder = tmp_path_factory.mktemp("tuned")
    done = tune(folder, "--storage", str(folder / "study.db"))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{folder / 'study.db'}"
    (name,) = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url).trials


def test_a_trial_per_judged_plan_and_the_same_again_on_resume(tuned):
    folder, result = tuned
    found = trials(folder)
    plans = [t.user_attrs["plan"] for t in found]
    assert len(plans) == result["tried"] > 0
    forms = {r["plan"]: r["forms"] for r in result["scored"]}
    assert {t.user_attrs["plan"]: t.params for t in found} == forms
    measured = {t.user_attrs["plan"] for t in found if "measured_ms" in t.user_attrs}
    assert measured == {r["plan"] for r in [*result["front"], *result["slower"]]}
    assert tune(folder, "--storage", str(folder / "study.db")).returncode == 0
    assert [t.user_attrs["plan"] for t in trials(folder)] == plans


def test_a_storage_that_fails_loses_nothing(tuned):
    folder, result = tuned
    done = tune(folder, "--storage", "/no/such/folder/study.db")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["scored"] == result["scored"] and again["status"] == "done"
    (line,) = again["warnings"]
    assert line.startswith("--storage failed, the run goes on without it: ")


def test_the_plans_are_exported(tuned, tmp_path):
    folder, result = tuned
    done = run("export", "last", "--plans", str(tmp_path / "a.csv"), "--json", db=folder / "a.db")
    assert json.loads(done.stdout) == {"plans": str(tmp_path / "a.csv"), "rows": result["tried"]}
    with (tmp_path / "a.csv").open(newline="") as file:
        found = {r["plan"]: r for r in csv.DictReader(file)}
    for row in result["scored"]:
        assert found[row["plan"]]["blocks.1.attn"] == row["forms"]["blocks.1.attn"]
        assert float(found[row["plan"]]["selection_drop"]) == row["selection"]["drop"]
    wrong = run("export", "last", db=folder / "a.db")
    assert wrong.returncode == 1 and "expected either PATH or --plans FILE" in wrong.stderr


def test_mlflow_gets_the_run(tuned):
    import mlflow

    folder, result = tuned
    where = (folder / "mlruns").as_uri()
    done = tune(folder, "--mlflow", where)
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(tracking_uri=where)
    within = client.get_experiment_by_name("attnpass")
    (kept,) = client.search_runs([within.experiment_id])
    assert kept.data.metrics["tried"] == result["tried"] and kept.info.status == "FINISHED"
    assert "result.json" in {f.path for f in client.list_artifacts(kept.info.run_id)}
