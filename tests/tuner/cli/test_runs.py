"""Stored runs are listed, shown and reported."""

from __future__ import annotations

import json

from tuning import run


def test_the_json_of_a_run_is_the_stored_result(finished):
    want = json.loads(json.dumps(finished.result.as_dict()))
    db = finished.path
    for command in (("results", "last"), ("show", finished.result.run)):
        assert json.loads(run(*command, "--json", db=db).stdout) == want
    (row,) = [
        r
        for r in json.loads(run("results", "--json", db=db).stdout)["runs"]
        if r["id"] == finished.result.run
    ]
    assert row["result"] == want and row["status"] == "done"


def test_runs_are_shown_as_tables(finished):
    db, name = finished.path, finished.result.run
    assert name in run("results", db=db).stdout
    assert f"run {name}" in run("results", name, db=db).stdout
    text = run("show", name, db=db).stdout
    assert "per site: divergence" in text and "baseline" in text


def test_a_report_is_written_beside_its_picture(finished, tmp_path):
    out = tmp_path / "r.html"
    done = run("report", finished.result.run, "--out", str(out), "--json", db=finished.path)
    assert json.loads(done.stdout) == {"report": str(out)} and done.returncode == 0
    assert out.exists() and out.with_suffix(".png").exists()
    bad = run("report", "--out", str(out / "x.html"), db=finished.path)
    assert bad.returncode == 1 and len(bad.stderr.strip().splitlines()) == 1
    assert "expected to write" in bad.stderr


def test_two_plans_are_compared(stored):
    db, path, name = stored
    value = json.loads(run("show", name, str(path), "--json", db=db).stdout)
    assert len(value["plans"]) == 2
    assert f"plan {name} against {name}" in run("show", name, str(path), db=db).stdout
