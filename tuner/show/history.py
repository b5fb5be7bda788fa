"""Stored measurements as tables: the list, and one beside another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from attnpass.store import Comparison


def measurements_table(rows: Sequence[Mapping[str, Any]], total: int) -> Table:
    """The newest of ``total`` measurements of a store, without their values."""
    newest = "" if len(rows) == total else f", the {len(rows)} newest"
    table = Table(title=f"{total} measurements{newest}", title_justify="left")
    for column in ("key", "created", "run", "kind", "subject", "outcome"):
        table.add_column(column)
    for row in rows:
        cells = [row["created"], row["run"] or "-", row["kind"], shortened(row["subject"])]
        table.add_row(row["key"][:12], *cells, row["outcome"])
    table.caption = "what one depends on: attnpass results --why KEY"
    return table


def shortened(text: str) -> str:
    """A text of which the middle is left out where it is long."""
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"


def comparison_table(found: Comparison) -> Table:
    """All that a measurement or a run depends on, beside another: the fields that differ first."""
    row, other, changed = found.row, found.other, found.changed
    table = Table(
        title=f"{row['kind']} of {shortened(row['subject'])}: {row['outcome']}",
        title_justify="left",
    )
    table.add_column("it depends on")
    table.add_column(f"{row['key'][:12]}, {row['created']}")
    if other is not None:
        table.add_column(f"{other['key'][:12]}, {other['created']}")
    for name in [*changed, *(n for n in row["context"] if n not in changed)]:
        cells = [_value(row["context"], name)]
        if other is not None:
            cells.append(_value(other["context"], name))
        table.add_row(name, *cells, style="bold" if name in changed else None)
    if other is None:
        table.caption = "there is no other of this kind and subject"
    else:
        names = ", ".join(changed) or "nothing"
        table.caption = f"{names} differs from the newest other of this kind and subject"
    return table


def _value(context: Mapping[str, Any], name: str) -> str:
    """A field of a context, shortened."""
    if name not in context:
        return "absent"
    value = context[name]
    return shortened(value if isinstance(value, str) else json.dumps(value))
