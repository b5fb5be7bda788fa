"""Two tuners at once on one database: both end well, and every row of both is there."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys

import pytest
from tuning import TINY

from attnpass.store import Store
from attnpass.tuner.search import read_result

GIVEN = ("--inner", "eager", "--trials", "4", "--max-drop", "0.3", "--forms", "hydra,skipat r=0")


@pytest.mark.slow
def test_two_processes_that_tune_the_same_task_lose_nothing(tmp_path):
    """Other seeds make other runs, which commit measurements under the same keys."""
    path = tmp_path / "a.db"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "attnpass.tuner.cli", "tune", TINY, *GIVEN, "--json"),
                *("--seed", str(seed), "--db", str(path), "--out", str(tmp_path / f"{seed}")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for seed in (1, 2)
    ]
    ends = [process.communicate(timeout=1500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    results = [json.loads(out) for out, _ in ends]
    assert {r["status"] for r in results} == {"done"}
    with Store(path, read=True) as store:
        rows = {row["id"]: row for row in store.runs()}
        assert {r["run"] for r in results} == set(rows) and len(rows) == 2
        for result in results:
            row = rows[result["run"]]
            assert row["status"] == "done" and row["name"] == "tiny"
            stored = read_result(row["result"], row["id"])
            assert stored.best == result["best"] and stored.tried == result["tried"]
            for name in (x.plan for x in (*stored.front, *stored.slower)):
                assert store.plan(name).hash == name
        kinds = {r["kind"] for r in store.db.query("SELECT DISTINCT kind FROM measurements")}
        assert {"accuracy", "ceiling", "latency", "divergence"} <= kinds
        judged = {x.plan for r in rows.values() for x in read_result(r["result"], "").front}
        subjects = {r["subject"] for r in store.db.query("SELECT subject FROM measurements")}
        assert {f"held out {plan}" for plan in judged} <= subjects
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
