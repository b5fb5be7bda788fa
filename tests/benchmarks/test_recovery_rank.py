"""Random plans, and how well a signal ranks them."""

from __future__ import annotations

import itertools

import pytest
from recovery_problems import TINY
from scripts import recovery_rank

from attnpass.task import load_task


def test_correlations_are_those_of_ranks():
    rows = [
        {"signals": {"good": 2.0**i, "bad": float(i % 3)}, "after": {"drop": float(i)}}
        for i in range(12)
    ]
    found = recovery_rank.correlations(rows)
    assert found["good"]["drop"] == pytest.approx([1.0, 1.0, 1.0])
    value, low, high = found["bad"]["drop"]
    assert low < value < high < 1 and low < 0.5
    lines = recovery_rank.table({"correlations": found})
    assert lines[2] == "| good | 1.00 [1.00, 1.00] |"


def test_plans_are_all_different_and_legal():
    drawn = recovery_rank.assignments(["a", "b", "c"], ["hydra", "skipat"], {("a", "skipat")})
    plans = list(itertools.islice(drawn, 17))  # 2 * 3 * 3 without the one that converts nothing
    assert len({tuple(p.items()) for p in plans}) == 17 and all(plans)
    assert all(p.get("a") != "skipat" for p in plans)


@pytest.mark.slow
def test_a_plan_is_better_after_distillation(monkeypatch):
    monkeypatch.setattr(recovery_rank, "LOCAL_STEPS", 4)
    task = load_task(TINY)
    task.recovery = task.recovery or list(task.calibration)
    pieces = recovery_rank.Pieces(task, {"hydra": {}})
    judge = recovery_rank.Judge(task, pieces.capture)
    before = {f: p.hash for f, p in pieces.trained.items()}
    sites = [s.name for s in pieces.capture.sites]
    row = recovery_rank.take(task, pieces, judge, dict.fromkeys(sites[:2], "hydra"), 12)
    assert row["after"]["change of the outputs"] < row["signals"]["change of the outputs"]
    assert row["signals"]["layers converted"] == 2
    assert {f: p.hash for f, p in pieces.trained.items()} == before, "pieces serve every plan"
