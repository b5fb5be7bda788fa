"""What is stored, for people: the measurements, and what one row has otherwise than another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnpass.errors import StoreError
from attnpass.store.rows import json_object
from attnpass.store.store import Store

SHOWN = ("key", "created", "run", "kind", "subject", "outcome")
"""The columns of a measurement that are short."""


def measurements(
    store: Store,
    most: int = -1,
    *,
    kind: str | None = None,
    task: str | None = None,
    outcome: str | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """All stored measurements or the ``most`` newest without their values, and how many there are.

    Args:
        kind: only those of a kind. task: only those that a run of a task committed, by the task's
            import path or its name. outcome: likewise.
    """
    wanted: dict[str, list[str]] = {}
    if kind is not None:
        wanted["kind = ?"] = [kind]
    if outcome is not None:
        wanted["outcome = ?"] = [outcome]
    if task is not None:
        wanted[f"run IN (SELECT id FROM runs WHERE {store.of_task})"] = [task, task]
    which = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    given = [value for values in wanted.values() for value in values]
    with store.errors():
        rows = store.db.query(
            f"SELECT {', '.join(SHOWN)} FROM measurements {which}"
            " ORDER BY created DESC, rowid DESC LIMIT ?",
            [*given, most],
        )
        total = store.db.execute(f"SELECT count(*) FROM measurements {which}", given).fetchone()
        return list(rows), int(total[0])


@dataclass(frozen=True)
class Comparison:
    """A row beside the newest other one of the same kind and subject.

    Attributes:
        row, other: the key, when it was created, run, kind, subject and outcome of both, and
            ``context``: all that each depends on, nested fields by dotted names. ``other`` is None
            where there is none.
    """

    row: Mapping[str, Any]
    other: Mapping[str, Any] | None

    @property
    def changed(self) -> dict[str, dict[str, Any]]:
        """The fields that differ, with the value of the older row and of the newer one.

        A value is left out where its row lacks the field.
        """
        if self.other is None:
            return {}
        old, new = sorted((self.other, self.row), key=lambda row: str(row["created"]))
        found: dict[str, dict[str, Any]] = {}
        for name in sorted({*old["context"], *new["context"]}):
            values = {
                age: row["context"][name]
                for age, row in (("old", old), ("new", new))
                if name in row["context"]
            }
            if len(values) < 2 or values["old"] != values["new"]:
                found[name] = values
        return found

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain JSON types."""
        other = None if self.other is None else dict(self.other)
        return {**self.row, "other": other, "changed": self.changed}


def compare(store: Store, name: str) -> Comparison:
    """The measurement or run of a key, or of the beginning of exactly one, beside another.

    That is the newest other one of the same kind and subject; of a run, of the same task.

    Raises:
        StoreError: there is none, there are several, or the row is damaged.
    """
    taken, run = store.named("measurements", "key", name), store.run(name)
    if taken is not None and run is not None and name not in (taken["key"], run["id"]):
        raise StoreError(
            f"expected the beginning of one key in {store.path}, got {name}, with which the"
            f" measurement {taken['key']} and the run {run['id']} begin; give more of it"
        )
    if run is not None and (taken is None or run["id"] == name):
        others = (r for r in store.runs(2, task=run["task"]) if r["id"] != run["id"])
        other = next(others, None)
        return Comparison(_of_run(run), None if other is None else _of_run(other))
    if taken is None:
        raise StoreError(
            f"expected the key of a measurement or a run in {store.path}, got {name!r};"
            " attnpass results --measurements lists them"
        )
    row = _of_measurement(taken)
    if row is None:
        raise StoreError(
            f"expected what measurement {taken['key']} depends on, got a damaged row; the next run"
            " measures it again"
        )
    near = store.newest(taken["kind"], taken["subject"], but=taken["key"])
    return Comparison(row, None if near is None else _of_measurement(near))


def _of_measurement(row: Mapping[str, Any]) -> dict[str, Any] | None:
    context = json_object(row["context"])
    if context is None:
        return None
    return {**{name: row[name] for name in SHOWN}, "context": _flat(context)}


def _of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    short = {
        "key": run["id"],
        "created": run["created"],
        "run": run["id"],
        "kind": "run",
        "subject": run["task"],
        "outcome": run["status"],
    }
    context = {"settings": run["settings"], **run["context"]}
    return {**short, "context": _flat(context)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested objects by dotted names."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            found |= _flat(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = inner
    return found
