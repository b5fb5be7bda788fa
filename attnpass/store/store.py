"""The rows of the database: measurements, runs, plans, pins and tiles, written and read.

A lookup that does not match is a miss with a reason, never an error and never a wrong hit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attnpass.errors import PlanError
from attnpass.kernels.tile import Tile
from attnpass.plan import Plan
from attnpass.store.database import Database, default_path, now


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
        with self.transaction():
            self.db.table("measurements").insert(row, replace=True)

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
        try:
            value = json.loads(rows[0]["value"])
            if json.loads(rows[0]["context"]) == json.loads(json.dumps(context)):
                return {**value, "outcome": rows[0]["outcome"]}, ""
        except (ValueError, TypeError):
            pass
        return None, "the stored row is corrupt"

    def _why(self, kind: str, subject: str, context: Mapping[str, object]) -> str:
        """Why a lookup is a miss: the fields in which the newest measurement's context differs."""
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

    def save_run(self, run: Mapping[str, object]) -> None:
        """Insert or update one run; settings, context and result are stored as JSON."""
        row = {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in run.items()}
        with self.transaction():
            self.db.table("runs").upsert(row, pk="id")

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first, JSON decoded."""
        with self.errors():
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
        with self.errors():
            rows = list(
                self.db.query(
                    "SELECT * FROM plans WHERE hash LIKE ? ORDER BY created DESC", [f"{name}%"]
                )
            )
        return _plan(rows[0], self.path) if rows else None

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
        """All pinned plans.

        Raises:
            PlanError: a pinned plan cannot be read.
        """
        with self.errors():
            rows = list(
                self.db.query("SELECT plans.* FROM pins JOIN plans ON plans.hash = pins.plan")
            )
        return [_plan(row, self.path) for row in rows]


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """A run with its JSON columns decoded; an empty object where a column is corrupt."""
    out = dict(row)
    for name in ("settings", "context", "result"):
        try:
            out[name] = json.loads(out[name]) if out[name] else {}
        except ValueError:
            out[name] = {}
    return out


def _plan(row: Mapping[str, Any], path: Path) -> Plan:
    """A stored plan; its parameters go through safetensors, never through pickle."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        document = json.loads(row["document"])
        tensors = load(row["parameters"]) if row["parameters"] else {}
    except (ValueError, SafetensorError) as error:
        raise PlanError(f"expected plan {row['hash']} in {path}, got a corrupt row") from error
    return Plan.from_dict(document, path.with_suffix(f".{row['hash']}"), tensors)


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


def measured_tiles(path: str | Path | None, context: Mapping[str, object]) -> dict[str, Tile]:
    """The tiles of a database that were measured in ``context``; none where there is no file.

    Raises:
        StoreError: the file cannot be read.
    """
    where = Path(path) if path is not None else default_path()
    if not where.exists():
        return {}
    with Store(where) as store:
        return store.tiles(context)
