"""A database with many measurements and runs, written at once."""

from __future__ import annotations

import json

from attnpass.store import Store, key_of


def context(i: int) -> dict:
    return {"torch": "2", "weights": f"{i % 50:04d}"}


def fill(store: Store, rows: int, runs: int) -> None:
    """Measurements of four kinds, and runs with long results."""
    kinds, long = ("accuracy", "latency", "divergence", "tile"), json.dumps({"x": "y" * 5000})

    def row(i: int) -> tuple:
        kind, subject, run = kinds[i % 4], f"{i // 4:016x}", f"{i % runs:012d}"
        key, stored = key_of(kind, subject, context(i)), json.dumps(context(i), sort_keys=True)
        created = f"2026-01-{1 + i % 28:02d}T00:{i % 60:02d}:00Z"
        return (key, created, run, kind, subject, "ok" if i % 9 else "oom", stored, '{"x": 1}')

    with store.transaction():
        run = "INSERT INTO runs VALUES (?, ?, ?, 'done', '{}', '{}', ?, ?)"
        store.db.conn.executemany(
            run,
            [
                (f"{i:012d}", f"2026-01-{1 + i % 28:02d}", f"{i % 7}.py:f", long, f"task {i % 7}")
                for i in range(runs)
            ],
        )
        store.db.conn.executemany(
            "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(row, range(rows))
        )
