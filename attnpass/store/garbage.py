"""Removal of what no run will read again, and of the space that it takes.

A measurement goes where something that it depends on is otherwise here now, where the baseline
that it rests on was measured anew, or where it is too old; a plan where no run, pin or measurement
names it; a file of tensors where no plan names it; the checkpoint of a training that was broken
off where it is too old. Runs, pins, the plans that they name, and what
a run that is going on committed stay. Every step is a transaction of its own: other processes may
use the database meanwhile, and what they lose is measured again.
"""

from __future__ import annotations

import glob
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attnpass.errors import StoreError
from attnpass.store.rows import json_object, named_files
from attnpass.store.store import Store
from attnpass.store.tensor_files import GRACE

RECENT = 86400.0
"""Seconds after which a run that commits nothing is not going on, and a plan is to be named."""

PLAN = re.compile(r"\b[0-9a-f]{16}\b")
"""The hash of a plan, wherever it stands."""


@dataclass(frozen=True)
class Removed:
    """What was removed, or what would be.

    Attributes:
        measurements, tiles, plans, files: how many. reasons: per reason how many measurements and
            tiles: the field that differs, ``baseline``, ``age`` or ``damaged``.
        bytes: by how much the database and its files became smaller on the disk; before anything
            is removed, the size of what would be.
        compacted: whether the database gave its free space back.
    """

    measurements: int
    tiles: int
    plans: int
    files: int
    reasons: Mapping[str, int]
    bytes: int
    compacted: bool

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {**asdict(self), "reasons": dict(self.reasons)}


def ago(seconds: float) -> str:
    """The time so many seconds ago, as rows hold it.

    Raises:
        StoreError: that is before all calendars.
    """
    try:
        then = datetime.now(UTC) - timedelta(seconds=seconds)
    except OverflowError as error:
        raise StoreError(f"expected an age of some years, got {seconds:g} s") from error
    return then.strftime("%Y-%m-%dT%H:%M:%SZ")


def find_garbage(store: Store, here: Mapping[str, object], before: str = "") -> Removed:
    """What ``collect_garbage`` would remove; nothing is written."""
    with store.errors():
        rows = list(_obsolete(store, here, before))
        keys = {row["key"] for row in rows if row["table"] == "measurements"}
        plans = _unnamed_plans(store, keys)
        gone = {row["hash"] for row in plans}
        named = {f for row in _plans(store) if row["hash"] not in gone for f in row["named"]}
        files = [*store.files.unnamed(named, GRACE), *_checkpoints(store, before)]
        size = sum(row["bytes"] for row in (*rows, *plans)) + sum(f.stat().st_size for f in files)
    return _removed(rows, len(plans), len(files), size, compacted=False)


def collect_garbage(store: Store, here: Mapping[str, object], before: str = "") -> Removed:
    """Remove what can no longer be read; says what that was.

    Args:
        here: fields of a context with the values that they have in this installation: what was
            measured under others goes.
        before: measurements and checkpoints that are older than this time go, too.

    Raises:
        StoreError: the database cannot be written.
    """
    whole = _disk(store)
    with store.errors():
        rows = list(_obsolete(store, here, before))
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        with store.transaction():
            for table in ("measurements", "tiles"):
                # one that was measured again meanwhile is another
                store.db.conn.executemany(
                    f"DELETE FROM {table} WHERE key = ? AND created = ?",
                    [(r["key"], r["created"]) for r in part if r["table"] == table],
                )
    with store.transaction():
        plans = _unnamed_plans(store, ())
        store.db.conn.executemany(
            "DELETE FROM plans WHERE hash = ?", [(p["hash"],) for p in plans]
        )
    with store.transaction():
        broken_off = _checkpoints(store, before)
        size = sum(path.stat().st_size for path in broken_off)
        files = [*store.files.unnamed(store.named_files(), GRACE), *broken_off]
        for path in files:
            path.unlink(missing_ok=True)
    compacted = _compact(store)
    size += whole - _disk(store)
    return _removed(rows, len(plans), len(files), size, compacted=compacted)


def _checkpoints(store: Store, before: str) -> list[Path]:
    """The checkpoints beside the database that were last written before a time, where one is."""
    stem = f"{glob.escape(store.path.stem)}.*.distil"
    # with the number of a process: one that was killed while it wrote
    patterns = (stem, f"{stem}.[0-9]*")
    return [
        path
        for pattern in patterns
        for path in store.path.parent.glob(pattern)
        if ago(time.time() - path.stat().st_mtime) < before
    ]


def _removed(
    rows: Collection[Mapping[str, Any]], plans: int, files: int, size: int, *, compacted: bool
) -> Removed:
    tables = Counter(row["table"] for row in rows)
    reasons = Counter(row["why"] for row in rows)
    return Removed(
        tables["measurements"],
        tables["tiles"],
        plans,
        files,
        dict(reasons.most_common()),
        max(size, 0),
        compacted,
    )


def _obsolete(store: Store, here: Mapping[str, object], before: str) -> Iterator[dict[str, Any]]:
    """The measurements and tiles to remove, each with its table, its size and the reason."""
    going, marks = _going(store), set[str]()
    kept = list[dict[str, Any]]()
    columns = "key, created, context, length(context) + length(value) AS bytes"
    for table, more in (("measurements", f"run, {MARK}"), ("tiles", "NULL AS run, NULL AS mark")):
        for row in store.db.query(f"SELECT {columns}, {more} FROM {table}"):
            context = json_object(row.pop("context"))
            why = _reason(context, here)
            if not why and table == "measurements" and row["created"] < before:
                why = "age"
            row |= {"table": table, "why": why, "baseline": (context or {}).get("baseline")}
            if why and row["run"] not in going:
                yield row
                continue
            marks.add(row["mark"])
            if row["baseline"] is not None and row["run"] not in going:
                kept.append(row)
    # only now the baselines that stay are known
    yield from ({**row, "why": "baseline"} for row in kept if row["baseline"] not in marks)


MARK = "CASE WHEN json_valid(value) THEN json_extract(value, '$.mark') END AS mark"
"""The mark of a baseline, on which other measurements rest; NULL for those."""


def _reason(context: Mapping[str, Any] | None, here: Mapping[str, object]) -> str:
    """Why what was measured in a context is never found here; ``""`` where it may be."""
    if context is None:
        return "damaged"
    return next((name for name in here if name in context and context[name] != here[name]), "")


def _going(store: Store) -> set[str]:
    """The runs that are going on: they began or committed something not long ago."""
    rows = store.db.execute(
        "SELECT id FROM runs WHERE status = 'running' AND (created >= ? OR EXISTS"
        " (SELECT 1 FROM measurements WHERE run = runs.id AND measurements.created >= ?))",
        [ago(RECENT)] * 2,
    )
    return {name for (name,) in rows.fetchall()}


def _plans(store: Store) -> Iterator[dict[str, Any]]:
    """The stored plans without their content."""
    size = "length(document) + coalesce(length(parameters), 0) AS bytes"
    files = "files" if store.version > 1 else "NULL AS files"
    for row in store.db.query(f"SELECT hash, created, {size}, {files} FROM plans"):
        yield {**row, "named": named_files(row["files"])}


def _unnamed_plans(store: Store, without: Collection[str]) -> list[dict[str, Any]]:
    """The plans that no run, pin or measurement names, ``without`` those of some keys."""
    recent = ago(RECENT)
    waiting = {row["hash"]: row for row in _plans(store) if row["created"] < recent}
    for (name,) in store.db.execute("SELECT plan FROM pins").fetchall():
        waiting.pop(name, None)
    texts = store.db.query(
        "SELECT NULL AS key, result AS text FROM runs UNION ALL"
        " SELECT key, subject || ' ' || value FROM measurements"
    )
    for row in texts if waiting else ():
        if row["key"] not in without:
            for name in PLAN.findall(row["text"] or ""):
                waiting.pop(name, None)
    return list(waiting.values())


def _compact(store: Store) -> bool:
    """Give free space back to the disk; False where other processes are reading or writing."""
    try:
        with store.errors():
            store.db.execute("VACUUM")
            store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except StoreError:
        return False
    return True


def _disk(store: Store) -> int:
    """The bytes that the database and its files take."""
    beside = (store.path.with_name(f"{store.path.name}{end}") for end in ("", "-wal"))
    files = [path for path in beside if path.is_file()]
    if store.files.folder.is_dir():
        files += [path for path in store.files.folder.iterdir() if path.is_file()]
    return sum(path.stat().st_size for path in files)
