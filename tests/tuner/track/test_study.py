"""The Optuna study: a trial per judged plan, the same trials on resume, nothing lost."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState
from rows_of_plans import ROWS, inspected, result_of

from attnpass.tuner.track import study as module
from attnpass.tuner.track.study import StudyCopy


def stored(path):
    """The one study of a file."""
    (name,) = optuna.get_all_study_names(f"sqlite:///{path}")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def told(path, rows, status="done", **more) -> StudyCopy:
    copy = StudyCopy(inspected(**more), str(path))
    for row in rows:
        copy.judged(row)
    if status:
        copy.finished(result_of(rows, status), {"plan": "plan.json"})
    return copy


def test_a_trial_holds_forms_numbers_and_constraint(tmp_path):
    told(tmp_path / "s.db", ROWS)
    study = stored(tmp_path / "s.db")
    over, proven = study.trials
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2
    assert over.params == {"one": "hydra", "two": "relu"} and over.value == 20.0
    assert over.constraints == {"drop": pytest.approx(0.05)}
    assert over.user_attrs["constraint"] == over.constraints["drop"]
    assert over.user_attrs["forms"] == "one: hydra, two: relu"
    assert (over.user_attrs["plan"], over.user_attrs["run"]) == ("b" * 16, "r1")
    assert proven.user_attrs["measured_ms"] == 31.5 and proven.value == 30.0
    assert proven.user_attrs["state"] == "proven" and proven.user_attrs["selection_drop"] == 0.0
    # Optuna itself takes the feasible one for the best, though the other is cheaper
    assert study.best_trial.number == proven.number and study.direction.name == "MINIMIZE"
    assert study.user_attrs["baseline_ms"] == 40.0 and study.user_attrs["plan"] == "plan.json"


def test_what_is_known_later_reaches_the_trial_that_runs(tmp_path):
    copy = told(tmp_path / "s.db", [replace(ROWS[1], latency=None, held_out=None)], status="")
    (trial,) = stored(tmp_path / "s.db").trials
    assert trial.state == TrialState.RUNNING and "measured_ms" not in trial.user_attrs
    assert trial.user_attrs["state"] == "allowed"
    copy.judged(ROWS[1])
    copy.finished(result_of(ROWS[1:]), {})
    (trial,) = stored(tmp_path / "s.db").trials
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["measured_ms"] == 31.5


@pytest.mark.parametrize("status", ["", "interrupted", "done"])
def test_the_same_run_finds_its_trials_again(tmp_path, status):
    told(tmp_path / "s.db", ROWS[:1], status)
    told(tmp_path / "s.db", ROWS)
    again = told(tmp_path / "s.db", ROWS)
    trials = stored(tmp_path / "s.db").trials
    assert [t.user_attrs["plan"] for t in trials] == [r.plan for r in ROWS]
    assert {t.state for t in trials} == {TrialState.COMPLETE} and not again.running


def test_other_choices_are_another_study(tmp_path):
    told(tmp_path / "s.db", ROWS)
    told(tmp_path / "s.db", ROWS, choices=("relu", "hydra", "sigmoid"))
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path}/s.db")
    assert len(names) == 2 and all(name.startswith("r1-") for name in names)


def test_refresh_replaces_the_study(tmp_path):
    told(tmp_path / "s.db", ROWS)
    told(tmp_path / "s.db", ROWS[:1], refresh=True)
    assert len(stored(tmp_path / "s.db").trials) == 1


def test_a_locked_file_is_an_error_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCKED", 0.05)
    copy = StudyCopy(inspected(), f"sqlite:///{tmp_path}/s.db")
    other = sqlite3.connect(tmp_path / "s.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(optuna.exceptions.StorageInternalError):
        copy.judged(ROWS[0])
    other.rollback()
    other.close()
