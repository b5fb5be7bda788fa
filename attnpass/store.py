"""SQLite: runs, measurements, plans, pins, tiles. The one place with SQL.

One file, WAL, immediate transactions, STRICT tables; readable with plain ``sqlite3``. A lookup
that does not match is a miss with a reason, never an error and never a wrong hit.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attnpass.errors import PlanError, StoreError
from attnpass.kernels.tile import Tile
from attnpass.plan import Plan

APPLICATION_ID = 0x41545450
"""Marks the file as ours (``PRAGMA application_id``)."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, created TEXT NOT NULL, task TEXT NOT NULL, status TEXT NOT NULL,
        settings TEXT NOT NULL, context TEXT NOT NULL, result TEXT
    ) STRICT;
    CREATE TABLE measurements (
        key TEXT PRIMARY KEY, created TEXT NOT NULL, run TEXT, kind TEXT NOT NULL,
        subject TEXT NOT NULL, outcome TEXT NOT NULL, context TEXT NOT NULL, value TEXT NOT NULL
    ) STRICT;
    CREATE INDEX measurements_subject ON measurements (kind, subject);
    CREATE TABLE plans (
        hash TEXT PRIMARY KEY, created TEXT NOT NULL, document TEXT NOT NULL, parameters BLOB
    ) STRICT;
    CREATE TABLE pins (
        structure TEXT PRIMARY KEY, created TEXT NOT NULL, plan TEXT NOT NULL REFERENCES plans
    ) STRICT;
    CREATE TABLE tiles (
        key TEXT PRIMARY KEY, created TEXT NOT NULL, context TEXT NOT NULL, tile TEXT NOT NULL,
        value TEXT NOT NULL
    ) STRICT;
    """,
)
"""Applied in order; ``PRAGMA user_version`` counts those that are."""


def default_path() -> Path:
    """``$ATTNPASS_DB``, else ``attnpass.db`` in the user's cache folder."""
    given = os.environ.get("ATTNPASS_DB")
    if given:
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("attnpass") / "attnpass.db"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def key_of(kind: str, subject: str, context: Mapping[str, Any]) -> str:
    """The identity of a measurement: everything that it depends on."""
    text = json.dumps([kind, subject, context], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """An open database. A context manager; safe with other processes on the same file.

    Args:
        path: the file; ``None`` is ``default_path()``. It is made where it does not exist.

    Raises:
        StoreError: the file is corrupt, foreign, of a newer version, or cannot be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        from sqlite_utils import Database

        self.path = Path(path) if path is not None else default_path()
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self.db = Database(connection)
            connection.execute("PRAGMA foreign_keys=ON")
            self._check_owner()
            connection.execute("PRAGMA journal_mode=WAL")
            self._migrate()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as one line with the cure."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise StoreError(
                f"expected a readable and writable attnpass database at {self.path}, got:"
                f" {error}; choose another with --db FILE or $ATTNPASS_DB"
            ) from error

    def _check_owner(self) -> None:
        # one snapshot: another process may be making the same database
        self.db.execute("BEGIN")
        owner = self.db.execute("PRAGMA application_id").fetchone()[0]
        tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        self.db.execute("COMMIT")
        if owner != APPLICATION_ID and tables:
            raise StoreError(
                f"expected an attnpass database at {self.path}, got another program's;"
                " choose another with --db FILE or $ATTNPASS_DB"
            )
        if owner == APPLICATION_ID and version > len(MIGRATIONS):
            raise StoreError(
                f"expected database version <= {len(MIGRATIONS)} at {self.path}, got {version};"
                " upgrade attnpass"
            )

    def _migrate(self) -> None:
        with self.transaction():
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    self.db.execute(statement)
            self.db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self.db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One immediate transaction: read-then-write is safe with other processes.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    def put(
        self,
        kind: str,
        subject: str,
        context: Mapping[str, Any],
        value: Mapping[str, Any],
        *,
        outcome: str = "ok",
        run: str | None = None,
    ) -> None:
        """Commit one measurement."""
        row = {
            "key": key_of(kind, subject, context),
            "created": now(),
            "run": run,
            "kind": kind,
            "subject": subject,
            "outcome": outcome,
            "context": json.dumps(context, sort_keys=True),
            "value": json.dumps(value),
        }
        with self.transaction():
            self.db.table("measurements").insert(row, replace=True)

    def get(
        self, kind: str, subject: str, context: Mapping[str, Any]
    ) -> tuple[dict[str, Any] | None, str]:
        """The measurement's value and ``""``, or None and why it is a miss.

        A failed measurement is a hit: its value holds ``outcome``.
        """
        with self._errors():
            rows = list(
                self.db.query(
                    "SELECT context, value, outcome FROM measurements WHERE key = ?",
                    [key_of(kind, subject, context)],
                )
            )
            if not rows:
                return None, self._why(kind, subject, context)
        try:
            value = json.loads(rows[0]["value"])
            if json.loads(rows[0]["context"]) == json.loads(json.dumps(context)):
                return {**value, "outcome": rows[0]["outcome"]}, ""
        except (ValueError, TypeError):
            pass
        return None, "the stored row is corrupt"

    def _why(self, kind: str, subject: str, context: Mapping[str, Any]) -> str:
        """Which field of the nearest stored measurement differs."""
        rows = list(
            self.db.query(
                "SELECT context FROM measurements WHERE kind = ? AND subject = ?"
                " ORDER BY created DESC LIMIT 1",
                [kind, subject],
            )
        )
        if not rows:
            return "never measured"
        try:
            old = json.loads(rows[0]["context"])
        except ValueError:
            return "the stored row is corrupt"
        changed = sorted(k for k in {*old, *context} if old.get(k) != context.get(k))
        return f"{', '.join(changed)} changed"

    def save_run(self, run: Mapping[str, Any]) -> None:
        """Insert or update one run; settings, context and result are stored as JSON."""
        row = {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in run.items()}
        with self.transaction():
            self.db.table("runs").upsert(row, pk="id")

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first, JSON decoded."""
        with self._errors():
            rows = list(self.db.query("SELECT * FROM runs ORDER BY created DESC, rowid DESC"))
        return [_decoded(r) for r in rows]

    def run(self, name: str) -> dict[str, Any] | None:
        """The run of an id, a prefix of one, or ``last``."""
        found = [r for r in self.runs() if name == "last" or r["id"].startswith(name)]
        return found[0] if found else None

    def save_plan(self, plan: Plan) -> str:
        """Store a plan with its parameters; returns its hash."""
        from safetensors.torch import save

        tensors = plan.tensors()
        row = {
            "hash": plan.hash,
            "created": now(),
            "document": json.dumps(plan.as_dict()),
            "parameters": save(tensors) if tensors else None,
        }
        with self.transaction():
            self.db.table("plans").upsert(row, pk="hash")
        return plan.hash

    def plan(self, name: str) -> Plan | None:
        """The plan of a hash or a prefix of one.

        Raises:
            PlanError: the stored plan cannot be read.
        """
        with self._errors():
            rows = list(
                self.db.query(
                    "SELECT * FROM plans WHERE hash LIKE ? ORDER BY created DESC", [f"{name}%"]
                )
            )
        return _plan(rows[0], self.path) if rows else None

    def put_tile(self, kind: str, context: Mapping[str, Any], tile: Tile, value: Any) -> None:
        """Commit the tile of a shape class, measured in ``context``."""
        row = {
            "key": key_of("tile", kind, context),
            "created": now(),
            "context": json.dumps({**context, "class": kind}, sort_keys=True),
            "tile": json.dumps(tile.as_dict()),
            "value": json.dumps(value),
        }
        with self.transaction():
            self.db.table("tiles").insert(row, replace=True)

    def tiles(self, context: Mapping[str, Any]) -> dict[str, Tile]:
        """Measured tiles by shape class; rows of another context, or corrupt, are no hit."""
        with self._errors():
            rows = list(self.db.query("SELECT context, tile FROM tiles"))
        wanted, found = json.loads(json.dumps(context)), {}
        for row in rows:
            with suppress(ValueError, TypeError, KeyError):
                taken = json.loads(row["context"])
                kind = taken.pop("class")
                if taken == wanted:
                    found[kind] = Tile(**json.loads(row["tile"]))
        return found

    def pin(self, plan: Plan) -> None:
        """Make ``plan`` the one that ``torch.compile`` applies to its model without options."""
        self.save_plan(plan)
        row = {"structure": plan.structure, "created": now(), "plan": plan.hash}
        with self.transaction():
            self.db.table("pins").upsert(row, pk="structure")

    def unpin(self, plan: Plan) -> bool:
        """Remove a pin; returns whether there was one."""
        with self.transaction():
            found = self.db.execute("DELETE FROM pins WHERE plan = ?", [plan.hash]).rowcount
        return bool(found)

    def pinned(self) -> list[Plan]:
        """All pinned plans that can be read."""
        with self._errors():
            rows = list(
                self.db.query("SELECT plans.* FROM pins JOIN plans ON plans.hash = pins.plan")
            )
        return [_plan(row, self.path) for row in rows]


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    out = dict(row)
    for name in ("settings", "context", "result"):
        try:
            out[name] = json.loads(out[name]) if out[name] else {}
        except ValueError:
            out[name] = {}
    return out


def _plan(row: Mapping[str, Any], path: Path) -> Plan:
    """A stored plan; its parameters go through safetensors, never through pickle."""
    where = path.with_suffix(f".{row['hash']}")
    try:
        document = json.loads(row["document"])
    except ValueError as error:
        raise PlanError(f"expected plan {row['hash']} in {path}, got a corrupt row") from error
    if not row["parameters"]:
        return Plan.from_dict(document, where)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.safetensors").write_bytes(row["parameters"])
        document["parameters"] = "plan.safetensors"
        return Plan.from_dict(document, Path(folder) / "plan.json")


def pinned_plans(path: str | Path | None) -> list[Plan]:
    """The pinned plans of a database; none where the file does not exist.

    Raises:
        StoreError: the file cannot be read.
        PlanError: a pinned plan cannot be read.
    """
    where = Path(path) if path is not None else default_path()
    if not where.exists():
        return []
    with Store(where) as store:
        return store.pinned()


def measured_tiles(path: str | Path | None, context: Mapping[str, Any]) -> dict[str, Tile]:
    """The tiles of a database that were measured in ``context``; none where there is no file.

    Raises:
        StoreError: the file cannot be read.
    """
    where = Path(path) if path is not None else default_path()
    if not where.exists():
        return {}
    with Store(where) as store:
        return store.tiles(context)
