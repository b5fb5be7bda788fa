"""The rows of a report's tables, as text; the pages in HTML and in Markdown show the same."""

from __future__ import annotations

import json

from attnpass.tuner.search import LOSSLESS, RunResult
from attnpass.tuner.show.tables import interval, latency_cells, percent

Columns = tuple[str, ...]
Rows = list[list[str]]

CONDITIONS = {
    "load": "load (waiting processes)",
    "others": "share of the processors that other programs took",
    "stolen": "share that the host took",
    "mhz": "clock in MHz",
    "threads": "threads",
    "pinned": "kept on one processor",
}
"""What the conditions of a measurement are called."""


def plan_rows(result: RunResult) -> tuple[Columns, Rows]:
    """All plans that were judged on held-out items, fastest first."""
    rows = []
    for row in [*result.front, *result.slower]:
        ms, speed = latency_cells(row)
        judged = row.held_out
        proof = ["-"] * 3
        if judged is not None:
            proof = [f"{judged.score:.4f}", percent(judged.drop), percent(judged.upper)]
        over = interval(row.latency.over_lossless if row.latency else None)
        rows.append([row.plan, speed, over, ms, *proof])
    metric = result.metric
    return ("plan", "speed-up", "over lossless", "ms (95 %)", metric, "drop", "at most"), rows


def layer_rows(result: RunResult) -> tuple[Columns, Rows]:
    """Per layer and form what it damages, what it saves, and why it was taken or not."""
    from attnpass.tuner.search import explain_choice

    choices = result.facts.saving_ms_per_site or {}
    rows = [
        [site["name"], v.choice, _number(v.damage), _number(v.saved_ms), v.why]
        for site in result.sites
        for v in explain_choice(result, site["name"])
        if v.choice in choices
    ]
    return ("layer", "form", "damage", "saves ms", "why it was taken, or not"), rows


def ceiling_rows(result: RunResult) -> list[tuple[str, str]]:
    """What costs nothing, and the speed-ups that no plan can beat."""
    facts = result.facts
    which = "the lossless plan" if facts.baseline == LOSSLESS else "the compiled model"
    share, kept, skipat = facts.attention_share, facts.ceiling, facts.ceiling_skipat
    rows = []
    if facts.softmax_ratio is not None:
        told = f"{facts.softmax_ratio}; it loses nothing"
        rows.append(("exact softmax by attnpass's kernels over the compiled model", told))
    if share is not None and kept is not None and skipat is not None:
        rows.append((f"attention's share of the time of {which}", f"{share:.0%}"))
        known = facts.ceiling_ratio
        told = f"{kept:.2f}x" if known is None else f"{known}"
        rows.append((f"most that a plan with all projections gains over {which}", told))
        rows.append(("most that any plan gains over it", f"{max(kept, skipat):.2f}x"))
    return rows


def noise_rows(result: RunResult) -> list[tuple[str, str]]:
    """How far two identical runs differed, and what the machine did meanwhile."""
    facts, rows = result.facts, []
    if facts.floor is not None:
        rows.append(("two identical runs differed by up to", f"{facts.floor:.1%}"))
    if facts.finalists_floor is not None:
        rows.append(("beside the finalists by up to", f"{facts.finalists_floor:.1%}"))
    for name, value in (facts.conditions or {}).items():
        shown = f"{value:.1%}" if name in ("others", "stolen") else str(value)
        rows.append((CONDITIONS.get(name, name), shown))
    return rows


def where_rows(result: RunResult) -> list[tuple[str, str]]:
    """Date, settings, device and versions."""
    stored = result.as_dict()
    rows = [("date", result.created), ("run", result.run)]
    for part in ("settings", "device", "versions"):
        rows += [(f"{part}: {k}", _plain(v)) for k, v in (stored[part] or {}).items()]
    return rows


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return json.dumps(value, default=str) if isinstance(value, dict) else str(value)
