"""One JSON object, one line per failure, exit codes 0, 1, 2."""

from __future__ import annotations

import json

import pytest
from tuning import TINY, run


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
