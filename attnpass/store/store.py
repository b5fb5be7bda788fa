"""The rows of the database: measurements, runs, plans, pins and tiles, written and read.

A lookup that does not match is a miss with a reason, never an error and never a wrong hit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from attnpass.errors import StoreError
from attnpass.kernels.tile import Tile
from attnpass.plan import Plan
from attnpass.store.database import Database, default_path, now
from attnpass.store.rows import decoded, json_object, named_files, stored_plan
from attnpass.store.tensor_files import SMALL, TensorFiles, size
from attnpass.text import listed


def key_of(kind: str, subject: str, context: Mapping[str, object]) -> str:
    """The key of a measurement, 32 hex digits: a digest of everything that it depends on."""
    text = json.dumps([kind, subject, context], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store(Database):
    """An open database with its rows. A context manager.

    The arguments and errors are those of ``Database``.
    """

    def put(
        self,
        kind: str,
        subject: str,
        context: Mapping[str, object],
        value: Mapping[str, object],
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
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        with self.transaction():
            # quicker than the insert of sqlite_utils: a pool commits many a second
            self.db.execute(
                f"INSERT OR REPLACE INTO measurements ({names}) VALUES ({marks})",
                list(row.values()),
            )

    def get(
        self, kind: str, subject: str, context: Mapping[str, object]
    ) -> tuple[dict[str, Any] | None, str]:
        """The measurement's value and ``""``, or None and why it is a miss.

        A failed measurement is a hit: its value holds ``outcome``.
        """
        with self.errors():
            rows = list(
                self.db.query(
                    "SELECT context, value, outcome FROM measurements WHERE key = ?",
                    [key_of(kind, subject, context)],
                )
            )
            if not rows:
                return None, self._why(kind, subject, context)
        value, stored = json_object(rows[0]["value"]), json_object(rows[0]["context"])
        if value is None or stored != json.loads(json.dumps(context)):
            return None, "the stored row is corrupt"
        return {**value, "outcome": rows[0]["outcome"]}, ""

    def _why(self, kind: str, subject: str, context: Mapping[str, object]) -> str:
        """Why a lookup is a miss: the fields in which the newest measurement's context differs."""
        row = self.newest(kind, subject)
        if row is None:
            return "never measured"
        old = json_object(row["context"])
        if old is None:
            return "the stored row is corrupt"
        changed = sorted(k for k in {*old, *context} if old.get(k) != context.get(k))
        return f"{', '.join(changed)} changed"

    def newest(self, kind: str, subject: str, but: str = "") -> dict[str, Any] | None:
        """The row of the newest measurement of a kind and subject, ``but`` that of a key."""
        with self.errors():
            rows = self.db.query(
                "SELECT * FROM measurements WHERE kind = ? AND subject = ? AND key != ?"
                " ORDER BY created DESC, rowid DESC LIMIT 1",
                [kind, subject, but],
            )
            return next(iter(rows), None)

    def save_run(self, run: Mapping[str, object]) -> None:
        """Insert or update one run; settings, context and result are stored as JSON."""
        row = {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in run.items()}
        with self.transaction():
            self.db.table("runs").upsert(row, pk="id")

    def runs(
        self,
        most: int = -1,
        *,
        task: str | None = None,
        status: str | None = None,
        since: str = "",
    ) -> list[dict[str, Any]]:
        """All runs or the ``most`` newest, newest first, JSON decoded.

        Args:
            task: only those of a task, by its import path or its name. status: likewise.
            since: only those created then or later, a time as ``now`` gives it.
        """
        which, given = self._which_runs(task, status, since)
        # the order first, without the results: they are long
        newest = f"SELECT rowid FROM runs {which} ORDER BY created DESC, rowid DESC LIMIT ?"
        with self.errors():
            rows = list(
                self.db.query(
                    f"SELECT * FROM runs WHERE rowid IN ({newest})"
                    " ORDER BY created DESC, rowid DESC",
                    [*given, most],
                )
            )
        return [decoded(r) for r in rows]

    def count_runs(
        self, *, task: str | None = None, status: str | None = None, since: str = ""
    ) -> int:
        """How many runs there are, with the conditions of ``runs``."""
        which, given = self._which_runs(task, status, since)
        with self.errors():
            found = self.db.execute(f"SELECT count(*) FROM runs {which}", given).fetchone()
            return int(found[0])

    def _which_runs(
        self, task: str | None, status: str | None, since: str
    ) -> tuple[str, list[str]]:
        """The condition of a query of runs, and its values."""
        terms, given = ["created >= ?"], [since]
        if task is not None:
            terms, given = [*terms, self.of_task], [*given, task, task]
        if status is not None:
            terms, given = [*terms, "status = ?"], [*given, status]
        return f"WHERE {' AND '.join(terms)}", given

    @property
    def of_task(self) -> str:
        """The condition that a run is of a task, by its import path or its name."""
        return f"(task = ? OR {'name' if self.version > 1 else 'NULL'} = ?)"

    def run(self, name: str) -> dict[str, Any] | None:
        """The run of an id, of the beginning of exactly one, or ``last``.

        Raises:
            StoreError: several runs begin so.
        """
        if name == "last":
            return next(iter(self.runs(1)), None)
        row = self.named("runs", "id", name)
        return decoded(row) if row else None

    def named(self, table: str, column: str, name: str) -> dict[str, Any] | None:
        """The row of a name, or of the beginning of exactly one.

        Raises:
            StoreError: several begin so.
        """
        if not (name and name.isprintable()):
            return None
        with self.errors():
            found = [
                row[column]
                for row in self.db.query(
                    f"SELECT {column} FROM {table} WHERE {column} = ? UNION ALL"
                    f" SELECT {column} FROM {table} WHERE {column} >= ? AND {column} < ?",
                    [name, name, name + chr(0x10FFFF)],
                )
            ]
            if len(set(found)) > 1 and found[0] != name:
                raise StoreError(
                    f"expected the beginning of one name in {self.path}, got {name}, with which"
                    f" {len(found)} begin: {listed(found)}; give more of it"
                )
            rows = self.db.query(f"SELECT * FROM {table} WHERE {column} = ?", found[:1] or [None])
            return next(iter(rows), None)

    def save_plan(self, plan: Plan) -> str:
        """Store a plan with its parameters, small ones in its row; returns its hash.

        Raises:
            StoreError: the parameters or the row cannot be written; what was stored stays.
        """
        from safetensors.torch import save

        files = list[str]()
        row: dict[str, Any] = {
            "hash": plan.hash,
            "created": now(),
            "document": json.dumps(plan.as_dict()),
        }
        try:
            small = self._save_large(plan, files)
            row["parameters"] = save(small) if small else None
            row["files"] = json.dumps(files) if files else None
            with self.transaction():
                gone = self.files.missing(files)
                if not gone:
                    self.db.table("plans").upsert(row, pk="hash")
        except StoreError:
            self._remove_unnamed(files)
            raise
        # another process took them for files that no plan will name
        return self.save_plan(plan) if gone else str(row["hash"])

    def _save_large(self, plan: Plan, files: list[str]) -> dict[str, Tensor]:
        """Write a plan's larger tensors, add their digests to ``files``; the other tensors."""
        small: dict[str, Tensor] = {}
        for held in plan.tensors_by_site():
            if size(held) < SMALL:
                small |= held
            else:
                files.append(self.files.save(held))
        if size(small) < SMALL:
            return small
        files.append(self.files.save(small))
        return {}

    @cached_property
    def files(self) -> TensorFiles:
        """The files beside the database that hold the plans' larger tensors."""
        return TensorFiles(self.path)

    def named_files(self) -> set[str]:
        """The digests of all files that a plan names."""
        with self.errors():
            rows = self.db.execute("SELECT files FROM plans WHERE files IS NOT NULL").fetchall()
        return {name for (text,) in rows for name in named_files(text)}

    def _remove_unnamed(self, files: list[str]) -> None:
        """Remove those of the files of a plan that could not be stored that no plan names."""
        with suppress(StoreError), self.transaction():
            for name in set(files) - self.named_files():
                self.files.path(name).unlink(missing_ok=True)

    def plan(self, name: str) -> Plan | None:
        """The plan of a hash, or of the beginning of exactly one.

        Raises:
            PlanError: the stored plan cannot be read. StoreError: several plans begin so.
        """
        row = self.named("plans", "hash", name)
        return stored_plan(row, self.path) if row else None

    def put_tile(
        self, kind: str, context: Mapping[str, object], tile: Tile, value: object
    ) -> None:
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

    def tiles(self, context: Mapping[str, object]) -> dict[str, Tile]:
        """Measured tiles by shape class; rows of another context, or corrupt, are no hit."""
        with self.errors():
            rows = list(self.db.query("SELECT context, tile FROM tiles"))
        wanted, found = json.loads(json.dumps(context)), {}
        for row in rows:
            with suppress(ValueError, TypeError, KeyError):
                taken = json_object(row["context"]) or {}
                kind = taken.pop("class")
                if taken == wanted:
                    found[kind] = Tile(**(json_object(row["tile"]) or {"": 0}))
        return found

    def tile_rows(self) -> list[dict[str, Any]]:
        """All measured tiles as rows, for another database."""
        with self.errors():
            return list(self.db.query("SELECT * FROM tiles"))

    def add_tile_rows(self, rows: list[dict[str, Any]]) -> None:
        """Add the tiles of another database."""
        with self.transaction():
            self.db.table("tiles").insert_all(rows, replace=True)

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
        """All pinned plans.

        Raises:
            PlanError: a pinned plan cannot be read.
        """
        with self.errors():
            rows = list(
                self.db.query("SELECT plans.* FROM pins JOIN plans ON plans.hash = pins.plan")
            )
        return [stored_plan(row, self.path) for row in rows]


def pinned_plans(path: str | Path | None) -> list[Plan]:
    """The pinned plans of a database; none where the file does not exist.

    Raises:
        StoreError: the file cannot be read.
        PlanError: a pinned plan cannot be read.
    """
    where = Path(path) if path is not None else default_path()
    if not where.exists():
        return []
    with Store(where, read=True) as store:
        return store.pinned()


def measured_tiles(path: str | Path | None, context: Mapping[str, object]) -> dict[str, Tile]:
    """The tiles of a database that were measured in ``context``; none where there is no file.

    Raises:
        StoreError: the file cannot be read.
    """
    where = Path(path) if path is not None else default_path()
    if not where.exists():
        return {}
    with Store(where, read=True) as store:
        return store.tiles(context)
