"""A plan measured again where it serves: does it still keep what was promised for it?

Speed is a ratio of interleaved pairs against the unchanged model compiled the same way, so that a
slower machine is no drift by itself; accuracy is of the same items, paired.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from attnpass import environment
from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import MeasureError, TaskError
from attnpass.plan import Plan
from attnpass.task import Task
from attnpass.tuner.check.verify import Counting, problems_of
from attnpass.tuner.measure import (
    Failure,
    Protocol,
    Worker,
    bound,
    first_tensor,
    floor,
    model_digest,
    percentile_ms,
    ratio,
    scores,
    split,
)


@dataclass(frozen=True)
class Row:
    """One promise: what was promised, what was found here, and whether it is kept.

    ``kept`` is None where nothing was promised, or where noise decides nothing.
    """

    what: str
    promised: str
    found: str
    kept: bool | None


@dataclass(frozen=True)
class Served:
    """A plan's promises on this machine.

    Attributes:
        plan: its hash. problems: why it does not fit the model, one line each.
        rows: the promises. conditions: of the machine while times were taken.
        elsewhere: what differs from the machine where the plan was measured, by name.
    """

    plan: str
    problems: list[str]
    rows: list[Row] = field(default_factory=list)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether the plan fits and no promise is broken."""
        return not self.problems and all(row.kept is not False for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {**asdict(self), "kept": self.kept}


def serve_check(
    plan: Plan,
    task: Task,
    *,
    inner: str = "inductor",
    mode: str | None = None,
    db: str | None = None,
    rounds: int = 30,
    slower: float = 0.1,
    drop: float | None = None,
) -> Served:
    """Measure latency, accuracy and outputs of a plan here, beside its promises.

    Args:
        plan: with the numbers that the tuner stored in it. task: that it was tuned on.
        inner, mode: how both models are compiled. db: the database with measured tiles.
        rounds: of interleaved calls.
        slower: share of the promised speed-up that may be missing.
        drop: allowed drop of the mean score; by default what was proven for the plan.

    Raises:
        MeasureError: the plan has no numbers to check, or latencies could not be taken.
        TaskError: the task has no path that a second process could load it from.
    """
    if not plan.measured.get("latency") or not plan.measured.get("held_out"):
        raise MeasureError(
            f"expected a plan with measured numbers, got {plan.hash} without; plans of attnpass"
            " tune have them, until their parameters or weights change"
        )
    if not task.path:
        raise TaskError("expected a task loaded from a path, got one without")
    capture = call(Capture(task.model).trace, task.example)
    problems = problems_of(plan, capture)
    if problems:
        return Served(plan.hash, problems)
    rows = [*_accuracy(plan, task, capture, drop)]
    with (
        tempfile.TemporaryDirectory(prefix="attnpass-") as folder,
        Worker(
            task.path, inner=inner, mode=mode, db=db, weights=model_digest(task.model)
        ) as worker,
    ):
        file = str(plan.save(Path(folder) / "plan.json"))
        times = worker.measure((None, None, file), Protocol(rounds))
    if isinstance(times, Failure):
        raise MeasureError(f"expected latencies of {plan.hash}, got {times.outcome}: {times.why}")
    rows += _latency(plan, times.times, slower)
    cuda = any(p.is_cuda for p in task.model.parameters())
    return Served(plan.hash, [], rows, times.conditions, _elsewhere(plan, cuda=cuda))


def _accuracy(plan: Plan, task: Task, capture: Capture, drop: float | None) -> list[Row]:
    """Scores and outputs of the held-out items under no plan and under the plan."""
    batches = split([len(target) for _, target in task.validation]).held_out
    base, converted = Counting(capture), Counting(capture)
    before = scores(task, base, batches).main
    with torch.no_grad():
        want = first_tensor(call(capture, task.example)).double()
        capture.use(plan)
        got = first_tensor(call(capture, task.example)).double()
    after = scores(task, converted, batches).main
    capture.use(None)
    promised = plan.measured["held_out"]
    allowed = promised["upper"] if drop is None else drop
    found = bound(before, after)
    off = float((got - want).norm() / want.norm().clamp_min(1e-30))
    bad = max(converted.bad - base.bad, 0)
    return [
        Row(
            f"drop of the mean score, {found.items} items",
            f"{promised['drop']:.4f}, at most {allowed:.4f}",
            f"{found.drop:.4f}, at most {found.upper:.4f}",
            found.drop <= allowed,
        ),
        Row("numbers that are NaN or infinite", "0", str(bad), bad == 0),
        Row("change of the output for the example", "", f"{off:.2%}", None),
    ]


def _latency(plan: Plan, times: list[list[float]], slower: float) -> list[Row]:
    """The speed-up with its interval, and milliseconds, which are shown and judge nothing."""
    promised = plan.measured["latency"]
    noise = floor(times[0], times[1])
    found = ratio(times[0], times[2])
    told = promised["ratio"]
    least = told["median"] * (1 - slower)
    # broken where even the upper end is too slow, open where noise hides it
    kept = True if found.median >= least else None if found.high >= least else False
    rows = [
        Row(
            "speed-up over the unchanged model",
            f"{told['median']:.2f}x [{told['low']:.2f}, {told['high']:.2f}]",
            f"{found.median:.2f}x [{found.low:.2f}, {found.high:.2f}]",
            kept,
        )
    ]
    for name, share, stored in (("p50", 0.5, "ms"), ("p95", 0.95, "p95_ms")):
        was = promised.get(stored)
        rows.append(
            Row(
                f"{name} in milliseconds",
                "" if was is None else f"{was:.2f}",
                f"{percentile_ms(times[2], share):.2f} (unchanged model"
                f" {percentile_ms(times[0], share):.2f})",
                None,
            )
        )
    rows.append(Row("two identical runs differ by", "", f"{noise:.1%}", None))
    return rows


def _elsewhere(plan: Plan, *, cuda: bool) -> dict[str, str]:
    """What is otherwise here than where the plan was measured."""
    was = dict(plan.measured.get("timing", {}))
    now = {**environment.device("cuda" if cuda else "cpu"), **environment.versions()}
    return {
        name: f"{was[name]} there, {value} here"
        for name, value in now.items()
        if name in was and was[name] != value
    }
