"""The outcome of a run in words."""

from __future__ import annotations

import shlex
from dataclasses import fields

from attnpass.tuner.search import LOSSLESS, REJECTED, PlanRow, RunResult, Settings, advise
from attnpass.tuner.show.tables import forms_line, percent


def verdict(result: RunResult) -> str:
    """The proven plan of a run, or that there is no gain and which plans come nearest."""
    best = result.best_row
    if best is not None and best.latency is not None and best.held_out is not None:
        proven, over = best.held_out, best.latency.over_lossless
        beside = "" if over is None else f" ({over} over lossless)"
        return (
            f"plan {best.plan}: {best.latency.ratio} over the compiled baseline{beside}, drop"
            f" {percent(proven.drop)}, proven at most {percent(proven.upper)} on"
            f" {proven.items:.0f} held-out items"
        )
    if result.status == "interrupted":
        return "interrupted; what was measured is kept, the same command goes on"
    limit, noise = percent(result.max_drop), percent(result.facts.noise)
    none = f"no plan is both proven within a drop of {limit} and faster than the noise ({noise})"
    if result.facts.baseline == LOSSLESS and result.facts.softmax_ratio is not None:
        gain = result.facts.softmax_ratio
        none = f"lossless is the answer: {gain}, drop 0, nothing to recover (no options); {none}"
    near = [_near(row, result.facts.baseline_ms) for row in result.nearest]
    if not near:
        return f"{none}: no gain"
    return "\n".join(
        [f"{none}: no gain; nearest, on the selection (a larger --max-drop starts there):", *near]
    )


def _near(row: PlanRow, baseline_ms: float | None) -> str:
    """One of the nearest plans, by its estimate and the selection."""
    speed = (baseline_ms or float("nan")) / row.estimate_ms
    drop, upper = (
        (row.selection.drop, row.selection.upper) if row.selection else (float("nan"),) * 2
    )
    return (
        f"about {speed:.2f}x, drop {percent(drop)}, at most {percent(upper)}"
        f" ({forms_line(row.forms)})"
    )


def next_words(result: RunResult) -> list[str]:
    """What to do next, in up to three sentences."""
    best, task = result.best_row, shlex.quote(_task(result))
    if best is None or best.held_out is None or best.latency is None:
        return advise(result)[-3:]
    more = (
        "For more speed train what is converted: the same command with --recover distil"
        " --recover-budget 10m."
        if result.settings.get("recover") != "distil"
        else "For more speed see what waits behind a wider limit, nothing measured: attnpass"
        f" solve {result.run} --max-drop {2 * result.max_drop:g}."
    )
    return [
        f"Use plan {best.plan}: {best.latency.ratio.median:.2f}x as fast as the compiled model;"
        f" {percent(best.held_out.upper)} of {result.metric} at most are lost.",
        f"Where it will serve, measure it again: attnpass serve-check plan.json {task}.",
        more,
    ]


def use_of(plan: str) -> str:
    """The commands and the code that use a plan."""
    return (
        f"attnpass export {plan} plan.json\n\n"
        "import torch\n"
        'fast = torch.compile(model, backend="attnpass", options={"plan": "plan.json"})'
    )


def counts(result: RunResult) -> list[tuple[str, int]]:
    """What became of all plans that a run scored."""
    judged = [*result.front, *result.slower]
    proven = sum(r.held_out is not None and r.held_out.upper <= result.max_drop for r in judged)
    rejected = sum(r.divergence is not None and r.divergence >= REJECTED for r in result.scored)
    rows = [
        ("scored on the selection", result.tried),
        ("scores ended early: too large a drop", rejected),
        ("timed and judged on held-out items", len(judged)),
        ("of these proven within the allowed drop", proven),
        ("of these not faster than the noise, or over a limit", len(result.slower)),
    ]
    return [row for row in rows if row[1] or row[0].startswith("scored")]


def command_of(result: RunResult) -> str:
    """The command that makes the same run."""
    words = ["attnpass", "tune", _task(result)]
    usual = {f.name: f.default for f in fields(Settings)}
    for name, value in result.settings.items():
        option = "--" + name.replace("_", "-")
        if name == "task" or name not in usual or value == usual[name] or not value:
            continue
        if name == "forms":
            words += [option, ",".join(value)]
        elif value is True:
            words.append(option)
        else:
            number = isinstance(value, (int, float))
            words += [option, f"{value:g}" if number else str(value)]
    return shlex.join(words)


def _task(result: RunResult) -> str:
    """The task as a command takes it; a result of older versions knows its name alone."""
    return str(result.settings.get("task") or result.task)
