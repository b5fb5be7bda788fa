"""Questions to a stored run from the command line: nothing is measured."""

from __future__ import annotations

import json

from tuning import count, run


def test_a_run_is_asked_without_measuring(finished):
    db, name, before = finished.path, finished.result.run, count(finished.path)
    value = json.loads(run("solve", name, "--max-drop", "0.9", "--json", db=db).stdout)
    assert value["baseline_ms"] == finished.result.facts.baseline_ms
    assert "plans under these limits" in run("solve", name, db=db).stdout
    site = finished.result.sites[0]["name"]
    value = json.loads(run("explain-choice", name, site, "--json", db=db).stdout)
    assert [x["choice"] for x in value["choices"]][0] == "softmax"
    assert f"choices at {site}" in run("explain-choice", name, site, db=db).stdout
    value = json.loads(run("diff", name, name, "--json", db=db).stdout)
    assert value["runs"] == [name, name] and value["settings"] == {}
    assert f"run {name} against {name}" in run("diff", name, name, db=db).stdout
    assert count(db) == before


def test_two_plans_differ(stored):
    db, path, name = stored
    value = json.loads(run("diff", name, str(path), "--json", db=db).stdout)
    assert len(value["plans"]) == 2
    assert f"plan {name} against {name}" in run("diff", name, str(path), db=db).stdout


def test_bad_questions_are_one_line(finished):
    db, name = finished.path, finished.result.run
    for arguments, told in (
        (("solve", name, "--max-drop", "7"), "expected --max-drop in 0..1, got 7"),
        (("explain-choice", name, "nowhere"), "expected a site of"),
        (("solve", "none"), "expected a run in"),
    ):
        done = run(*arguments, db=db)
        assert done.returncode == 1 and told in done.stderr
