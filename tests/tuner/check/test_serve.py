"""A plan's promises, measured again."""

from __future__ import annotations

import json

import pytest
import torch
from tuning import TINY, run

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.task import load_task
from attnpass.tuner.check import serve
from attnpass.tuner.check.serve import Served, serve_check
from attnpass.tuner.measure import Failure, Times

RATIO = {"median": 2.0, "low": 1.9, "high": 2.1, "pairs": 30}


def promised(task, **held_out) -> Plan:
    plan = Plan.create(task.model, *task.example, form="softmax")
    plan.measured = {
        "held_out": {"drop": 0.0, "upper": 0.01, **held_out},
        "latency": {"ms": 5.0, "p95_ms": 6.0, "ratio": RATIO},
        "timing": {"device": "another processor", "threads": torch.get_num_threads()},
    }
    return plan


def latency(base, quick, slower=0.1):
    rows = serve._latency(promised(load_task(TINY)), [base, base, quick], slower)
    return {row.what: row for row in rows}


def test_a_speed_up_is_kept_broken_or_hidden_by_noise():
    kept = latency([10.0] * 30, [5.1] * 30)
    assert kept["speed-up over the unchanged model"].kept is True
    assert kept["p95 in milliseconds"].found == "5.10 (unchanged model 10.00)"
    assert latency([10.0] * 30, [9.0] * 30)["speed-up over the unchanged model"].kept is False
    wild = [10.0 / (1.7 + 0.3 * (i % 2)) if i % 3 else 10 / 1.6 for i in range(30)]
    assert latency([10.0] * 30, wild)["speed-up over the unchanged model"].kept is None
    assert latency([10.0] * 30, [9.0] * 30, 0.6)["speed-up over the unchanged model"].kept is True


def canned(monkeypatch, reply):
    class Canned:
        def __init__(self, path, **how):
            assert path == TINY and how["inner"] == "eager"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def measure(self, plans, protocol):
            assert plans[:2] == (None, None) and Plan.load(plans[2])
            return reply

    monkeypatch.setattr(serve, "Worker", Canned)


def test_accuracy_and_what_differs_here(monkeypatch):
    canned(monkeypatch, Times([[10.0] * 30, [10.0] * 30, [5.0] * 30], []))
    task = load_task(TINY)
    found = serve_check(promised(task), task, inner="eager")
    assert found.kept and len(found.elsewhere) == 1
    assert found.elsewhere["device"].startswith("another processor there")
    rows = {row.what: row for row in found.rows}
    assert rows["numbers that are NaN or infinite"].found == "0"
    hydra = Plan.create(task.model, *task.example, form="hydra")
    hydra.measured = promised(task).measured
    with torch.no_grad():
        for values in hydra.values.values():
            for p in values.values():
                p.fill_(-1e5)
    broken = serve_check(hydra, task, inner="eager")
    assert not broken.kept
    assert [r.what for r in broken.rows if r.kept is False] == ["drop of the mean score, 60 items"]
    assert serve_check(hydra, task, inner="eager", drop=1.0).kept


def test_what_cannot_be_checked_is_said(monkeypatch):
    task = load_task(TINY)
    bare = Plan.create(task.model, *task.example, form="softmax")
    with pytest.raises(
        MeasureError, match="expected a plan with measured numbers, got .* without"
    ):
        serve_check(bare, task)
    canned(monkeypatch, Failure("oom", "no room"))
    with pytest.raises(MeasureError, match="expected latencies of .*, got oom: no room"):
        serve_check(promised(task), task, inner="eager")
    other = Plan.create(task.model, *task.example, form="hydra")
    other.measured = bare.measured = promised(task).measured
    other.sites["blocks.0.attn"].fits["heads"] = 99
    found = serve_check(other, task)
    assert isinstance(found, Served) and found.problems and not found.kept and not found.rows


def test_the_command_measures_and_its_exit_code_tells(tmp_path):
    task = load_task(TINY)
    path = promised(task).save(tmp_path / "plan.json")
    given = ("serve-check", str(path), TINY, "--inner", "eager", "--rounds", "7")
    found = run(*given, "--json", apart=True, db=tmp_path / "a.db")
    value = json.loads(found.stdout)
    # the plan changes nothing: twice the speed was promised in vain
    assert found.returncode == 1 and not value["kept"]
    broken = [row["what"] for row in value["rows"] if row["kept"] is False]
    assert broken == ["speed-up over the unchanged model"]
    lax = run(*given, "--slower", "0.9", apart=True, db=tmp_path / "a.db")
    assert lax.returncode == 0 and "another device" in lax.stdout
