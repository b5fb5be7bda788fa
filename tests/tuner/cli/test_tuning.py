"""The command that searches: its options, and that no interruption loses a measurement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tuning import TASKS, TINY, count, rows, run

from attnpass.errors import OptionError
from attnpass.store import Store
from attnpass.tuner.cli.tuning import seconds


def test_dry_run_measures_nothing(tmp_path):
    found = run("tune", TINY, "--dry-run", "--json", db=tmp_path / "a.db")
    data = json.loads(found.stdout)
    assert found.returncode == 0
    # five choices and softmax at the first site but for two skipat, six at the others
    assert data["space"] == 4 * 6 * 6
    assert data["forms"] == ["sigmoid", "relu", "hydra", "skipat r=0", "skipat r=0.5"]
    assert data["items_needed"] == 299 and data["estimated_s"] > 0 and data["budget_s"] is None
    assert data["reachable"] == (data["held_out"] >= 299)
    with Store(tmp_path / "a.db") as store:
        assert store.runs() == [] and store.db.table("measurements").count == 0


def test_an_output_folder_that_cannot_be_written_fails_before_measuring(tmp_path):
    (tmp_path / "file").write_text("")
    found = run("tune", TINY, "--out", str(tmp_path / "file" / "x"), db=tmp_path / "a.db")
    assert found.returncode == 1
    assert "choose another folder with --out" in found.stderr
    with Store(tmp_path / "a.db") as store:
        assert store.db.table("measurements").count == 0


@pytest.mark.parametrize(
    ("text", "want"), [("90", 90.0), ("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0)]
)
def test_times(text, want):
    assert seconds(text, "--x") == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recover", "labels"], "expected to recover by calibrate or distil, got 'labels'"),
        (["--recover-budget", "soon"], "expected --recover-budget like 90s, 5m or 1h, got 'soon'"),
        (["--recover-budget", "inf"], "expected recover-budget >= 0, got inf"),
        (["--budget", "soon"], "expected --budget like 90s, 5m or 1h, got 'soon'"),
        (["--budget", "-3"], "expected budget >= 0, got -3"),
        (["--objective", "speed"], "expected objective of inference, train, got 'speed'"),
        (["--forms", "hydra r=1"], "expected options of form hydra (no options), got r"),
        (["--recover-rank", "-1"], "expected a recover-rank >= 0, got -1"),
        (["--recover-steps", "9", "--budget", "9s"], "expected recover-steps without budget"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, tmp_path):
    done = run("tune", f"{TASKS}:tiny", *arguments, "--json", db=tmp_path / "a.db")
    assert done.returncode == 1 and message in json.loads(done.stdout)["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "cuda:7"], "expected devices of cpu, on which the task runs, got cuda:7"),
        (["--ray", "127.0.0.1:1"], "expected a Ray cluster at 127.0.0.1:1, got"),
    ],
)
def test_workers_that_are_not_there_are_one_line(arguments, message, tmp_path):
    done = run("tune", TINY, *arguments, "--json", db=tmp_path / "a.db")
    assert done.returncode == 1 and message in json.loads(done.stdout)["error"]
    with Store(tmp_path / "a.db") as store:
        assert store.db.table("measurements").count == 0


@pytest.mark.slow
def test_the_command_distils_a_model_whose_arguments_are_named(tmp_path):
    """A run with distillation as users call it, batches being dicts."""
    given = ("--inner", "eager", "--forms", "hydra", "--trials", "2", "--max-drop", "0.5")
    budget = ("--recover", "distil", "--recover-budget", "8s")
    out = ("--json", "--out", str(tmp_path))
    done = run("tune", f"{TASKS}:named", *given, *budget, *out, db=tmp_path / "a.db", apart=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "done" and result["settings"]["recover"] == "distil"
    trained = [c for c in result["scored"] if c["recovery"]]
    assert trained and all(c["recovery"]["steps"] > 0 for c in trained)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 5])
def test_kill_9_loses_nothing_and_the_same_command_goes_on(tmp_path, after):
    """A process that is killed in the middle of a run, as the machine may."""
    path = tmp_path / "a.db"
    command = [
        sys.executable,
        "-m",
        "attnpass.tuner.cli",
        "tune",
        TINY,
        "--inner",
        "eager",
        "--trials",
        "4",
        "--max-drop",
        "0.3",
        "--forms",
        "hydra,skipat r=0",
        "--tiles",
        "2",
        "--json",
        "--db",
        str(path),
        "--out",
        str(tmp_path / "out"),
    ]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while count(path) < after and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    kept = rows(path)
    assert len(kept) >= after
    second = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0, second.stderr
    result = json.loads(second.stdout)
    assert result["status"] == "done"
    now = rows(path)
    assert all(now[k] == v for k, v in kept.items())
    assert len(now) > len(kept)


@pytest.mark.slow
def test_sigint_prints_the_best_so_far_and_fails(tmp_path):
    """Ctrl-C to the whole process group, the worker and its compiler among it."""
    path = tmp_path / "a.db"
    command = [
        sys.executable,
        *("-m", "attnpass.tuner.cli", "tune", TINY, "--inner", "eager", "--json"),
        *("--db", str(path), "--out", str(tmp_path / "out")),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while count(path) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert json.loads(out)["status"] == "interrupted"
    assert "Traceback" not in err
    assert count(path) >= 2


def test_a_time_that_is_none_says_how_to_write_one():
    with pytest.raises(OptionError, match="expected --x like 90s, 5m or 1h, got '5 minutes'"):
        seconds("5 minutes", "--x")


@pytest.mark.slow
def test_without_the_cache_nothing_of_the_users_is_read_or_written(tmp_path, monkeypatch):
    """A run in a database of its own, as users start it."""
    path, folder = tmp_path / "a.db", tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    given = ("--inner", "eager", "--forms", "hydra", "--trials", "2", "--max-drop", "0.5")
    out = ("--no-cache", "--json", "--out", str(tmp_path / "out"))
    done = run("tune", TINY, *given, *out, db=path, apart=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    assert not path.exists()
    assert not list(folder.glob("attnpass-*")), "its own database is gone, too"


def test_no_cache_and_a_database_are_one_or_the_other(tmp_path):
    path = tmp_path / "a.db"
    given = ("--dry-run", "--no-cache")
    found = run("tune", TINY, *given, "--db", str(path))
    assert found.returncode == 1 and "expected either --db or --no-cache, got both" in found.stderr
    assert run("tune", TINY, *given, db=path).returncode == 0 and not path.exists()
