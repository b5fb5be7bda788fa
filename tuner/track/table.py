"""One flat row per judged plan, and the CSV or JSON file of all of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from attnpass.errors import OptionError, OutputError
from attnpass.files import reason, replace_file
from attnpass.tuner.search import REJECTED, PlanRow, RunResult

COLUMNS = (
    *("plan", "state", "estimate_ms", "measured_ms", "speed_up", "speed_up_low", "speed_up_high"),
    *("selection_items", "selection_score", "selection_drop", "selection_upper"),
    *("held_out_items", "held_out_score", "held_out_drop", "held_out_upper"),
    *("divergence", "recovery_steps", "recovery_seconds"),
)
"""The numbers of a plan, before one column per site."""


def flat(row: PlanRow, limit: float) -> dict[str, Any]:
    """The numbers of a plan that there are, by the names of ``COLUMNS``; milliseconds, shares.

    ``limit`` is the allowed drop, which decides the state.
    """
    found: dict[str, Any] = {
        "plan": row.plan,
        "state": state(row, limit),
        "estimate_ms": row.estimate_ms,
    }
    if row.latency is not None:
        ratio = row.latency.ratio
        found |= {"measured_ms": row.latency.ms, "speed_up": ratio.median}
        found |= {"speed_up_low": ratio.low, "speed_up_high": ratio.high}
    for name, bound in (("selection", row.selection), ("held_out", row.held_out)):
        if bound is not None:
            found |= {f"{name}_items": bound.items, f"{name}_score": bound.score}
            found |= {f"{name}_drop": bound.drop, f"{name}_upper": bound.upper}
    if row.divergence is not None and row.divergence < REJECTED:
        found["divergence"] = row.divergence
    if row.recovery is not None:
        found["recovery_steps"] = row.recovery.steps
        found["recovery_seconds"] = row.recovery.seconds
    return found


def state(row: PlanRow, limit: float) -> str:
    """What is known of a plan.

    ``proven`` or ``not proven`` by the held-out items; before that ``allowed`` or ``over the
    limit`` by the bound on the selection.
    """
    if row.held_out is not None:
        return "proven" if row.held_out.upper <= limit else "not proven"
    inside = row.selection is not None and row.selection.upper <= limit
    return "allowed" if inside else "over the limit"


def write_table(result: RunResult, path: Path) -> Path:
    """All judged plans of a run as ``.csv`` or ``.json``, by estimated milliseconds.

    Columns: ``COLUMNS``, then one per site with its form. In JSON a list of objects with the
    same keys; what was not measured is empty in CSV and null in JSON.

    Raises:
        OptionError: another kind of file, or a run that stored no plans. OutputError: the file
        cannot be written.
    """
    if path.suffix not in (".csv", ".json"):
        raise OptionError(f"expected a file that ends in .csv or .json, got {str(path)!r}")
    if not result.scored:
        raise OptionError(
            f"expected a run with judged plans, got {result.run} without any;"
            " an older version kept none: run its tune command again"
        )
    sites = list(dict.fromkeys(site for row in result.scored for site in row.forms))
    rows = []
    for row in sorted(result.scored, key=lambda r: (r.estimate_ms, r.plan)):
        found = flat(row, result.max_drop)
        rows.append({**{c: found.get(c) for c in COLUMNS}, **{s: row.forms[s] for s in sites}})

    def write(half: Path) -> None:
        if path.suffix == ".json":
            half.write_text(json.dumps(rows, indent=1) + "\n")
            return
        with half.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *sites])
            writer.writeheader()
            writer.writerows(rows)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise OutputError(f"expected to write {path}, got {reason(error)}") from error
    return path
