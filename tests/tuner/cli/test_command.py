"""One JSON object, one line per failure, exit codes 0, 1, 2."""

from __future__ import annotations

import json
import os
import signal

import pytest
from tuning import TINY, run

from attnpass.tuner.cli.command import only_answers, stopped_by_signals


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sites", "nosuch"], 1, "expected a task"),
        (["sites", "no.such.module:task"], 1, "to import, got ModuleNotFoundError"),
        (["sites", "nofile.py:task"], 1, "expected a file nofile.py"),
        (["tune", TINY, "--effort", "slow"], 1, "expected effort of quick, full"),
        (["tune", TINY, "--forms", "hydr"], 1, "expected forms of"),
        (["results", "zzz"], 1, "expected a run"),
        (["pin", "zzz"], 1, "expected a plan file, a plan or a run"),
        (["show", "nofile.json"], 1, "expected a plan file at nofile.json"),
        (["nosuchcommand"], 2, "No such command"),
        (["tune"], 2, "Missing argument"),
        (["tune", TINY, "--max-drop", "abc"], 2, "not a valid float"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(tmp_path, arguments, code, message):
    found = run(*arguments, db=tmp_path / "a.db", apart=message == "expected a task")
    assert found.returncode == code
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    if code == 1:
        assert len(found.stderr.strip().splitlines()) == 1
        assert found.stdout == ""


def test_errors_are_json_too(tmp_path):
    found = run("sites", "nosuch", "--json", db=tmp_path / "a.db", apart=True)
    assert found.returncode == 1
    assert "expected a task" in json.loads(found.stdout)["error"]


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
def test_a_foreign_or_corrupt_database_is_one_line(tmp_path, content):
    path = tmp_path / "a.db"
    if content is None:
        import sqlite3

        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(content)
    found = run("results", db=path)
    assert found.returncode == 1
    assert len(found.stderr.strip().splitlines()) == 1
    assert "--db FILE" in found.stderr


def test_signals_end_a_command_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) is before


def test_with_json_all_that_others_print_goes_to_stderr(capfd):
    with only_answers(True):
        print("printed")
    with only_answers(False):
        print("answer")
    out, err = capfd.readouterr()
    assert out == "answer\n" and "printed" in err


def test_an_error_that_is_not_ours_is_one_line_with_its_place(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError("first\nsecond")

    monkeypatch.setattr("attnpass.tuner.check.examine", fails)
    found = run("doctor", db=tmp_path / "a.db")
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert "got ValueError at" in found.stderr and "test_command.py" in found.stderr
    assert "first; ATTNPASS_TRACE=1" in found.stderr
    monkeypatch.setenv("ATTNPASS_TRACE", "1")
    assert "Traceback" in run("doctor", db=tmp_path / "a.db").stderr


def test_a_user_who_leaves_by_sys_exit_is_a_failure(tmp_path, monkeypatch):
    def leaves(*_, **__):
        raise SystemExit(0)

    monkeypatch.setattr("attnpass.tuner.check.examine", leaves)
    found = run("doctor", db=tmp_path / "a.db")
    assert found.returncode == 1 and "got SystemExit" in found.stderr
