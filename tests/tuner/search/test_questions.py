"""Questions to a finished run: nothing is measured, and every number is the stored one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnpass.errors import OptionError
from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search import RunResult
from attnpass.tuner.search.plan_row import PlanLatency, PlanRow
from attnpass.tuner.search.questions import differences, explain_choice, solve
from attnpass.tuner.search.result import Facts

NO = {"code": "MASK_ARBITRARY", "hint": "a window"}
LEGAL = dict.fromkeys(("softmax", "sigmoid", "relu", "hydra", "skipat"))
SITES = [{"name": "a", "legal": {**LEGAL, "skipat": NO}}, {"name": "b", "legal": LEGAL}]


def row(plan, a, b, ms, drop, upper, *, held_out=False, peak=None) -> PlanRow:
    judged = Bound(100, 0.9, drop, upper, 0.95)
    latency = PlanLatency(ms, Ratio(10 / ms, 9 / ms, 11 / ms, 30), None, ms, peak)
    return PlanRow(
        plan,
        {"a": a, "b": b},
        ms,
        selection=judged,
        held_out=judged if held_out else None,
        latency=latency if held_out else None,
    )


FAST = row("fast", "hydra", "hydra", 5.0, 0.04, 0.06, held_out=True, peak=50.0)
SAFE = row("safe", "softmax", "hydra", 8.0, 0.0, 0.01, held_out=True, peak=80.0)
SEEN = row("seen", "hydra", "softmax", 7.0, 0.01, 0.02)
RESULT = RunResult(
    run="r",
    status="done",
    task="t",
    created="",
    metric="accuracy",
    settings={"max_drop": 0.01, "forms": ["hydra", "relu", "skipat r=0", "gelu"]},
    facts=Facts(
        baseline_ms=10.0,
        saving_ms_per_site={"hydra": 2.0, "relu": -1.0, "skipat r=0": 4.0},
        form_ratios={"relu": Ratio(0.8, 0.7, 0.9, 30)},
        undecided=["skipat r=0"],
    ),
    device={},
    versions={},
    sites=SITES,
    declined=[],
    sensitivity={
        "a": {"softmax": 0.0, "hydra": 0.5},
        "b": {"softmax": 0.0, "hydra": 0.25, "skipat r=0": 0.75},
    },
    fit={"hydra": {"a": 0.125, "b": 0.25}},
    tried=3,
    front=[FAST, SAFE],
    nearest=[],
    best="safe",
    scored=[FAST, SEEN, SAFE],
)


def names(rows) -> list[str]:
    return [r.plan for r in rows]


def test_another_limit_finds_other_plans_without_measuring():
    same = solve(RESULT)
    assert names(same.proven) == ["safe"] and same.likely == []
    loose = solve(RESULT, max_drop=0.06)
    assert names(loose.proven) == ["fast", "safe"] and names(loose.likely) == ["seen"]
    assert names(solve(RESULT, max_drop=0.06, max_ms=6.0).proven) == ["fast"]
    assert names(solve(RESULT, max_drop=0.06, max_memory_mb=60.0).proven) == ["fast"]
    assert not solve(RESULT, max_drop=0.0, max_ms=1.0).proven
    with pytest.raises(OptionError, match="expected a run with latencies, got r"):
        solve(replace(RESULT, facts=Facts()))


def test_the_integer_program_adds_what_nobody_scored():
    found = solve(RESULT, max_ms=6.5).predicted
    assert ({"a": "softmax", "b": "skipat r=0"}, 6.0) in found
    assert all(ms <= 6.5 for _, ms in found)
    assert {"a": "hydra", "b": "hydra"} not in [forms for forms, _ in found], "known already"


def test_why_each_choice_is_taken_or_not():
    first = {x.choice: x for x in explain_choice(RESULT, "a")}
    assert list(first) == ["softmax", "hydra", "relu", "skipat r=0", "gelu"]
    assert first["softmax"].why == "taken by the best plan" and first["softmax"].used == 1
    assert first["hydra"].fit == 0.125 and first["hydra"].used == 1
    assert "which no proven plan could afford" in first["hydra"].why
    assert first["relu"].why == "no gain (0.800x [0.700, 0.900] at every legal site)"
    assert first["skipat r=0"].why == "not legal: MASK_ARBITRARY: a window"
    assert first["gelu"].why.startswith("not timed")
    second = {x.choice: x for x in explain_choice(RESULT, "b")}
    assert second["hydra"].why == "taken by the best plan"
    assert second["softmax"].why == "the best plan converts this site"
    assert second["skipat r=0"].why == (
        "saves 4 ms at a damage of 0.75; hydra saves 2 ms at 0.25; noise hides its gain"
    )
    with pytest.raises(OptionError, match="expected a site of a, b, got 'c'"):
        explain_choice(RESULT, "c")


def test_what_two_runs_have_otherwise():
    other = replace(RESULT, settings={**RESULT.settings, "max_drop": 0.06}, best="fast")
    found = differences(RESULT, other)
    assert found["settings"] == {"max_drop": [0.01, 0.06]} and found["facts"] == {}
    assert found["best"] == ["safe", "fast"]
    assert found["forms"] == {"a": ["softmax", "hydra"]}
    assert not any(differences(RESULT, RESULT)[x] for x in ("settings", "facts", "forms"))
