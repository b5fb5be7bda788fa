"""Rows of judged plans, and a result that holds them, for the tests of copies of a run."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from attnpass.tuner.measure import Bound, Ratio
from attnpass.tuner.search import Facts, PlanRow, RunResult
from attnpass.tuner.search.plan_row import PlanLatency, Recovery

ROWS = (
    PlanRow("b" * 16, {"one": "hydra", "two": "relu"}, 20.0, Bound(400, 0.9, 0.05, 0.07, 0.95)),
    PlanRow(
        "a" * 16,
        {"one": "softmax", "two": "relu"},
        30.0,
        Bound(400, 0.95, 0.0, 0.01, 0.95),
        Bound(600, 0.94, 0.01, 0.02, 0.98),
        0.1,
        PlanLatency(31.5, Ratio(1.3, 1.2, 1.4, 30)),
        Recovery(0.05, 9, 2.5),
    ),
)
"""A plan that was scored alone, and one that was recovered, timed and proven."""


def result_of(rows: Sequence[PlanRow], status: str = "done", run: str = "r1") -> RunResult:
    """A result with these plans judged."""
    last = rows[-1:]
    return RunResult(
        run=run,
        status=status,
        task="t",
        created="",
        metric="accuracy",
        settings={"max_drop": 0.02},
        facts=Facts(baseline_ms=40.0, ceiling=1.5),
        device={},
        versions={},
        sites=[],
        declined=[],
        sensitivity={},
        fit={},
        tried=len(rows),
        front=list(last),
        nearest=[],
        best=last[0].plan if last else None,
        scored=list(rows),
    )


def inspected(*, refresh: bool = False, choices: Sequence[str] = ("hydra", "relu")) -> Any:
    """What the copies of a run read of its inspection."""
    return SimpleNamespace(
        run="r1",
        settings=SimpleNamespace(max_drop=0.02, refresh=refresh, task="t"),
        asked={"task": "t", "max_drop": 0.02},
        legal={"one": list(choices), "two": list(choices)},
        sites=[1, 2],
    )
