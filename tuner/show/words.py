"""The outcome of a run in words."""

from __future__ import annotations

from attnpass.tuner.search import LOSSLESS, PlanRow, RunResult
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
