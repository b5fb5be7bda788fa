"""A plan per site, or the difference of two, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from attnpass.plan import Plan

MOST = 500
"""Rows of a table; more take seconds to lay out, and nobody reads them."""


def plan_table(plan: Plan, other: Plan | None = None) -> Table:
    """A plan per site, or the sites at which two plans differ."""
    if other is not None:
        return _difference(plan, other)
    table = Table(title=f"plan {plan.hash}", title_justify="left")
    for column in ("site", "form", "options", *(["weights changed"] if plan.deltas else [])):
        table.add_column(column)
    for name, entry in list(plan.sites.items())[:MOST]:
        changes = [_deltas(plan, name)] if plan.deltas else []
        table.add_row(name, entry.form, _options(entry.options), *changes)
    return _cut(table, len(plan.sites))


def _cut(table: Table, rows: int) -> Table:
    """The table, with a line on the rows that it leaves out."""
    if rows > MOST:
        table.caption = f"and {rows - MOST} sites more; --json gives all"
    return table


def _difference(plan: Plan, other: Plan) -> Table:
    """The sites at which the form or its options differ."""
    table = Table(title=f"plan {plan.hash} against {other.hash}", title_justify="left")
    for column in ("site", "form", "options", "other form", "options"):
        table.add_column(column)
    rows = []
    for name, entry in plan.sites.items():
        theirs = other.sites.get(name)
        cells = [name, entry.form, _options(entry.options)]
        if theirs is None:
            rows.append([*cells, "-", "-"])
        elif (theirs.form, theirs.options) != (entry.form, entry.options):
            rows.append([*cells, theirs.form, _options(theirs.options)])
    for row in rows[:MOST]:
        table.add_row(*row)
    return _cut(table, len(rows))


def _deltas(plan: Plan, site: str) -> str:
    """How many weights a site's deltas change, and with how many numbers."""
    deltas = plan.deltas.get(site, {}).values()
    numbers = sum(p.numel() for d in deltas for p in d.parameters())
    return f"{len(deltas)} ({numbers:,} numbers)" if deltas else "-"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())
