"""Answers to questions about a run as tables: other limits, the choices at a site, two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from attnpass.tuner.search import PlanRow
from attnpass.tuner.show.tables import forms_line, percent

if TYPE_CHECKING:
    from attnpass.tuner.search import Solution, Verdict

MOST = 12
"""Rows of a part of a table."""


def solution_table(found: Solution) -> Table:
    """Plans under other limits: proven, likely, predicted; fastest first."""
    table = Table(title="plans under these limits, nothing measured", title_justify="left")
    for column in ("known", "plan", "speed-up", "ms", "drop, at most", "form per layer"):
        table.add_column(column)
    for row in found.proven[:MOST]:
        table.add_row("proven", *_cells(row, found.base_ms), style="bold green")
    for row in found.likely[:MOST]:
        table.add_row("on the selection", *_cells(row, found.base_ms))
    for forms, ms in list(found.predicted)[-MOST:][::-1]:
        cells = ["-", f"about {found.base_ms / ms:.2f}x", f"{ms:.2f}", "-", forms_line(forms)]
        table.add_row("predicted", *cells, style="dim")
    return table


def _cells(row: PlanRow, base_ms: float) -> list[str]:
    judged = row.held_out or row.selection
    drop = "-" if judged is None else f"{percent(judged.drop)}, {percent(judged.upper)}"
    if row.latency is None:
        speed, ms = f"about {base_ms / row.estimate_ms:.2f}x", f"{row.estimate_ms:.2f}"
    else:
        speed, ms = f"{row.latency.ratio.median:.3f}x", f"{row.latency.ms:.2f}"
    return [row.plan, speed, ms, drop, forms_line(row.forms)]


def choice_table(site: str, rows: Sequence[Verdict]) -> Table:
    """Every choice at one site, and why it is taken or not."""
    table = Table(title=f"choices at {site}", title_justify="left")
    for column in (
        "choice",
        "damage",
        "saves",
        "error of the fit",
        "in plans of the front",
        "why",
    ):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.choice,
            "-" if row.damage is None else f"{row.damage:.2g}",
            "-" if row.saved_ms is None else f"{row.saved_ms:.3g} ms",
            "-" if row.fit is None else f"{row.fit:.2g}",
            str(row.used),
            row.why,
            style="bold green" if row.why.startswith("taken") else None,
        )
    return table


def difference_table(names: Sequence[str], found: Mapping[str, Any]) -> Table:
    """What two runs have otherwise."""
    table = Table(title=f"run {names[0]} against {names[1]}", title_justify="left")
    for column in ("what", names[0], names[1]):
        table.add_column(column, overflow="fold")
    for part in ("settings", "device", "versions", "facts"):
        for name, (mine, theirs) in found[part].items():
            table.add_row(f"{part}: {name}", _short(mine), _short(theirs))
    table.add_row("best plan", *(_short(x) for x in found["best"]))
    for site, (mine, theirs) in found["forms"].items():
        table.add_row(site, mine, theirs)
    return table


def _short(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping) and {"median", "low", "high"} <= value.keys():
        return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    text = "-" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
