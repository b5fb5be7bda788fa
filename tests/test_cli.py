"""The command line: one JSON object, one line per failure, exit codes 0, 1, 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from attnpass import Plan
from attnpass.store import Store
from attnpass.task import load_task
from attnpass.tuner.cli import main

TINY = str(Path(__file__).parent / "tiny_tasks.py") + ":tiny"


def run(
    *arguments: str, db: Path | None = None, apart: bool = False
) -> subprocess.CompletedProcess:
    """What a command does; ``apart`` in a process of its own, as users call it."""
    env = {"ATTNPASS_DB": str(db)} if db else {}
    if apart:
        command = [sys.executable, "-m", "attnpass.tuner.cli", *arguments]
        env = {**os.environ, **env}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    done = CliRunner().invoke(main, arguments, env=env, catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A database with one plan, and the plan's file."""
    folder = tmp_path_factory.mktemp("cli")
    task = load_task(TINY)
    plan = Plan.create(task.model, *task.example, form="hydra", sites="blocks.[12].attn")
    with Store(folder / "a.db") as store:
        store.save_plan(plan)
    return folder / "a.db", plan.save(folder / "plan.json"), plan.hash


def test_sites_as_json_and_as_a_table():
    found = run("sites", TINY, "--json")
    assert found.returncode == 0
    data = json.loads(found.stdout)
    assert [s["name"] for s in data["sites"]] == [f"blocks.{i}.attn" for i in range(3)]
    assert data["sites"][0]["legal"]["skipat"]["code"] == "CROSS_GRAPH"
    table = run("sites", TINY)
    assert "blocks.2.attn" in table.stdout


def test_roundtrip_is_equal():
    found = run("roundtrip", TINY, "--json", apart=True)
    data = json.loads(found.stdout)
    assert found.returncode == 0
    assert data["equal"] and len(data["sites"]) == 3 and data["all"] <= 1e-5


def test_dry_run_measures_nothing(tmp_path):
    found = run("tune", TINY, "--dry-run", "--json", db=tmp_path / "a.db")
    data = json.loads(found.stdout)
    assert found.returncode == 0
    # five choices and softmax at the first site but for two skipat, six at the others
    assert data["space"] == 4 * 6 * 6
    with Store(tmp_path / "a.db") as store:
        assert store.runs() == [] and store.db.table("measurements").count == 0


def test_pin_applies_unpin_removes(stored):
    db, _, name = stored
    assert json.loads(run("pin", name, "--json", db=db).stdout) == {"pinned": name}
    code = (
        "import torch, attnpass, logging, sys; logging.basicConfig(stream=sys.stderr);"
        f"task = attnpass.load_task({TINY!r});"
        "fast = torch.compile(task.model, backend='attnpass', options={'inner': 'eager'});"
        "fast(*task.example); r = attnpass.compiled_report(); print(r.plan, len(r.rewritten))"
    )
    env = {**os.environ, "ATTNPASS_DB": str(db)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ran.stdout.split() == [name, "2"], ran.stderr
    assert f"applying pinned plan {name}" in ran.stderr
    assert run("unpin", name, db=db).returncode == 0
    assert run("unpin", name, db=db).returncode == 1
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ran.stdout.split() == ["0"]


def test_pinned_plan_is_not_applied_to_other_weights(stored, monkeypatch, caplog):
    db, _, name = stored
    with Store(db) as store:
        store.pin(store.plan(name))
    monkeypatch.setenv("ATTNPASS_DB", str(db))
    import attnpass

    task = load_task(TINY)
    with torch.no_grad():
        next(task.model.blocks[0].attn.qkv.parameters()).add_(1.0)
    attnpass.reset_report()
    fast = torch.compile(task.model, backend="attnpass", options={"inner": "eager"})
    with torch.no_grad():
        out = fast(*task.example)
        assert torch.equal(out, task.model(*task.example))
    assert attnpass.compiled_report().rewritten == {}
    assert "other weights; not applied" in caplog.text
    with Store(db) as store:
        store.unpin(store.plan(name))


def test_export_import_show_verify(stored, tmp_path):
    db, _, name = stored
    out = tmp_path / "sub" / "p.json"
    assert run("export", name, str(out), db=db).returncode == 0
    assert Plan.load(out).hash == name
    fresh = tmp_path / "b.db"
    assert json.loads(run("import", str(out), "--json", db=fresh).stdout) == {"plan": name}
    shown = json.loads(run("show", name, "--json", db=fresh).stdout)
    assert shown["sites"]["blocks.1.attn"]["form"] == "hydra"
    checked = run("verify", str(out), TINY, "--json", db=fresh)
    data = json.loads(checked.stdout)
    assert checked.returncode == 0, checked.stderr
    assert data["problems"] == [] and data["items"] == 60 and len(data["rewritten"]) == 2


def test_verify_of_another_models_plan_names_the_problem(stored, tmp_path):
    _, path, _ = stored
    found = run("verify", str(path), "digits", "--json", db=tmp_path / "a.db")
    data = json.loads(found.stdout)
    assert found.returncode == 1
    assert any("another model" in line for line in data["problems"])


def test_doctor_says_what_is_there(tmp_path):
    found = run("doctor", "--json", db=tmp_path / "a.db")
    rows = {r["what"]: r for r in json.loads(found.stdout)["checks"]}
    assert rows["torch"]["found"] == torch.__version__
    assert rows["database"]["ok"]


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


def test_an_output_folder_that_cannot_be_written_fails_before_measuring(tmp_path):
    (tmp_path / "file").write_text("")
    found = run("tune", TINY, "--out", str(tmp_path / "file" / "x"), db=tmp_path / "a.db")
    assert found.returncode == 1
    assert "choose another folder with --out" in found.stderr
    with Store(tmp_path / "a.db") as store:
        assert store.db.table("measurements").count == 0
