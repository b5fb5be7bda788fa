"""Stored runs are listed, shown and reported."""

from __future__ import annotations

import json
import math

import house
import pytest
from tuning import run

from attnpass.store import Store, key_of
from attnpass.tuner.cli.runs import rank
from attnpass.tuner.progress import ProgressPrinter
from attnpass.tuner.search import PlanRow, RunResult
from attnpass.tuner.search.session import Session


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
    assert "per site: divergence" in text and ("baseline" in text or "as it is" in text)


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


def row(plan: str, speed: float, upper: float) -> dict:
    judged = {"items": 9, "score": 0.9, "drop": 0.0, "upper": upper, "confidence": 0.9}
    ratio = {"median": speed, "low": speed, "high": speed, "pairs": 9}
    return {
        "plan": plan,
        "forms": {"a": "hydra"},
        "estimate_ms": 1.0,
        "held_out": judged,
        "latency": {"ms": 1.0, "ratio": ratio},
    }


RUNS = {
    "slow": ("2026-11-28T10:00:00Z", "one", "a.py:f", "done", row("p1", 1.2, 0.03)),
    "fast": ("2026-11-29T10:00:00Z", "two", "b.py:f", "done", row("p2", 2.0, 0.02)),
    "none": ("2026-11-30T10:00:00Z", "one", "a.py:f", "interrupted", None),
}


@pytest.fixture
def several(tmp_path):
    """A database with three runs and three measurements."""
    path = tmp_path / "a.db"
    with Store(path) as store:
        for name, (created, called, task, status, best) in RUNS.items():
            front = [PlanRow.from_dict(best).as_dict()] if best else []
            result = {"front": front, "best": best and best["plan"], "task": task}
            store.save_run(
                {
                    "id": name,
                    "created": created,
                    "task": task,
                    "name": called,
                    "status": status,
                    "settings": {"seed": 0},
                    "context": {"torch": created},
                    "result": RunResult.from_dict(result).as_dict(),
                }
            )
        store.put("latency", "p1", {"torch": "1", "threads": 2}, {"times": []}, run="slow")
        store.put("accuracy", "p1", {"torch": "1"}, {"scores": []}, run="fast")
        store.put("latency", "p2", {"torch": "1"}, {}, run="fast", outcome="oom")
        with store.transaction():
            store.db.execute("UPDATE measurements SET created = '2026-11-28' WHERE run = 'slow'")
    return path


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ((), ["none", "fast", "slow"]),
        (("--sort", "created", "--limit", "2"), ["none", "fast"]),
        (("--sort", "speedup"), ["fast", "slow", "none"]),
        (("--sort", "drop", "--limit", "1"), ["fast"]),
        (("--task", "one"), ["none", "slow"]),
        (("--task", "b.py:f"), ["fast"]),
        (("--task", "a.py:f", "--sort", "speedup"), ["slow", "none"]),
        (("--status", "done"), ["fast", "slow"]),
        (("--since", "2026-11-29"), ["none", "fast"]),
        (("--since", "2026-11-29T12:00:00+01:00"), ["none"]),
        (("--since", "2026-11-29", "--status", "done"), ["fast"]),
        (("--task", "three"), []),
    ],
)
def test_runs_are_chosen_and_sorted(several, options, want):
    found = json.loads(run("results", *options, "--json", db=several).stdout)
    assert [r["id"] for r in found["runs"]] == want
    assert found["total"] >= len(want)


def test_the_table_of_runs_shows_the_name_of_the_task(several):
    text = run("results", "--sort", "speedup", db=several).stdout
    rows = [x.split()[1] for x in text.splitlines() if x.startswith("│")]
    assert rows == ["fast", "slow", "none"]
    assert "two" in text and "b.py:f" in text and "2.000 [2.000, 2.000]" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sort", "size"), "expected --sort of created, speedup, drop, got 'size'"),
        (("--since", "yesterday"), "expected --since like 2026-11-30"),
        (("--limit", "0"), "expected --limit >= 1, got 0"),
        (("--kind", "latency"), "expected no --kind with the list of runs"),
        (("--measurements", "--sort", "drop"), "expected no --sort with --measurements"),
        (("fast", "--task", "one"), "expected no --task with one of them"),
        (("fast", "--measurements"), "expected one of RUN, --measurements and --why KEY"),
        (("--why", "zz"), "expected the key of a measurement or a run"),
    ],
)
def test_options_that_do_not_belong_together_are_one_line(several, options, message):
    found = run("results", *options, db=several)
    assert found.returncode == 1 and message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_measurements_are_listed_with_their_keys(several):
    found = json.loads(run("results", "--measurements", "--json", db=several).stdout)
    assert found["total"] == 3
    assert [r["run"] for r in found["measurements"]] == ["fast", "fast", "slow"]
    key = found["measurements"][-1]["key"]
    assert key == key_of("latency", "p1", {"torch": "1", "threads": 2})
    assert key[:12] in run("results", "--measurements", db=several).stdout
    for options, count in (
        (("--kind", "latency"), 2),
        (("--outcome", "oom"), 1),
        (("--task", "one"), 1),
        (("--task", "b.py:f", "--kind", "accuracy"), 1),
        (("--kind", "x"), 0),
    ):
        found = run("results", "--measurements", *options, "--json", db=several)
        assert json.loads(found.stdout)["total"] == count


def test_why_a_measurement_was_taken_again(several):
    """What a run says of a miss leads to the field, its old value and its new one."""
    said = []
    with Store(several) as store:
        progress = ProgressPrinter(quiet=True)
        progress.say = lambda text, **_: said.append(text)
        session = Session("fast", store, progress)
        assert session.find("latency", "p1", {"torch": "1", "threads": 1}) is None
        session.keep("latency", "p1", {"torch": "1", "threads": 1}, {"times": []})
    (line,) = said
    assert line.startswith("measuring again what is stored: threads changed (attnpass results ")
    command = line.partition("(attnpass ")[2].rstrip(")").split()
    found = json.loads(run(*command, "--json", db=several).stdout)
    assert found["changed"] == {"threads": {"old": 2, "new": 1}}
    assert found["context"] == {"torch": "1", "threads": 2} and found["other"]["run"] == "fast"
    text = run(*command, db=several).stdout
    first = next(x for x in text.splitlines() if x.startswith("│"))
    assert [x.strip() for x in first.split("│")[1:-1]] == ["threads", "2", "1"]


def test_why_a_run_is_another(several):
    found = json.loads(run("results", "--why", "none", "--json", db=several).stdout)
    assert found["other"]["key"] == "slow" and list(found["changed"]) == ["torch"]


@pytest.mark.parametrize("by", ["speedup", "drop"])
def test_damaged_and_unfinished_runs_come_last(by):
    for result in ({}, {"front": 3}, {"best": "x"}):
        assert rank({"id": "x", "result": result}, by) == math.inf


def test_every_kind_and_outcome_of_a_run_is_described(finished):
    rows = json.loads(run("results", "--measurements", "--json", db=finished.path).stdout)
    text = (house.ROOT / "docs" / "schema.md").read_text()
    for row in rows["measurements"]:
        assert f"| `{row['kind']}` |" in text and f"`{row['outcome']}`" in text
