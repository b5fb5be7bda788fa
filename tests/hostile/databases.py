"""Databases with damaged rows, of others, locked, and files that are none."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnpass import Plan
from attnpass.kernels.tile import Tile
from attnpass.store import Store
from attnpass.store.database import APPLICATION_ID
from attnpass.tuner.search import PlanRow, RunResult
from hostile import plan_files
from hostile.case import Case

RUN = "0123456789ab"


@functools.cache
def result() -> dict[str, Any]:
    """A stored result with one finalist."""
    row = {
        "plan": "cafe",
        "forms": {"a": "hydra"},
        "estimate_ms": 1.0,
        "selection": {"items": 9, "score": 0.9, "drop": 0.0, "upper": 0.1, "confidence": 0.9},
        "held_out": {"items": 9, "score": 0.9, "drop": 0.0, "upper": 0.1, "confidence": 0.9},
        "latency": {"ms": 1.0, "ratio": {"median": 2.0, "low": 1.9, "high": 2.1, "pairs": 9}},
    }
    sites = [{"name": "a", "legal": {"hydra": None, "skipat": {"code": "CROSS_GRAPH"}}}]
    front = [PlanRow.from_dict(row).as_dict()]
    return RunResult.from_dict({"front": front, "best": "cafe", "sites": sites}).as_dict()


def whole(folder: Path, runs: int = 1) -> Path:
    """A database with runs, a measurement, a plan and a tile."""
    path = folder / "a.db"
    plan_files.changed(lambda d, t: None)(folder)
    plan = Plan.load(folder / "plan.json")
    with Store(path) as store:
        store.save_plan(plan)
        store.put("accuracy", "p", {"x": 1}, {"scores": [1.0], "complete": True})
        store.put_tile("c", {"x": 1}, Tile(), {})
        text = json.dumps(result())
        given = ("done", "{}", "{}", text)
        with store.transaction():
            store.db.conn.executemany(
                "INSERT INTO runs (id, created, task, status, settings, context, result)"
                " VALUES (?, ?, 't', ?, ?, ?, ?)",
                [
                    (f"{RUN[:-4]}{i:04d}", f"2026-01-01T00:00:{i:06d}Z", *given)
                    for i in range(runs)
                ],
            )
    return path


def damaged(sql: str, folder: Path) -> None:
    """The whole database after a statement."""
    connection = sqlite3.connect(whole(folder))
    connection.executescript(sql)
    connection.close()


JUNK = ["", "{", "{}", "[]", "3", "null", '"x"', '{"front": 3}', '{"front": [1]}', "\ud7ff" * 9]
JUNK += ['{"front": [{}]}', '{"best": 3}', '{"facts": {"items": "x"}}', '{"sites": ["a"]}']
JUNK += ['{"facts": []}', '{"sensitivity": {"a": 3}}', "[" * 100_000, '{"task": "\\u001b[2J"}']
COLUMNS = {
    "plans SET document": JUNK[:7],
    "runs SET settings": JUNK[:4],
    "runs SET status": ["", "\x1b[2J", "[/]", "running"],
    "runs SET task": ["\x1b[2J", "[/] :smile:", "\u202e"],
    "runs SET created": ["", "[/]"],
    "runs SET id": ["\x1b[2J", "[/]"],
}
FILES = {
    "text": b"this is not a database" * 100,
    "a header alone": b"SQLite format 3\x00",
    "a header and noise": b"SQLite format 3\x00" + bytes(range(256)) * 64,
    "zeros": bytes(8192),
}


def cases() -> Iterator[Case]:
    """All cases of databases."""
    db = ("--db", "{}/a.db")
    commands: list[tuple[str, ...]] = [
        ("results",),
        ("show", "last"),
        ("report", "--out", "{}/r.html"),
    ]
    for name, text in FILES.items():
        for command in (("results",), ("show", "last"), ("pin", "x")):
            make = functools.partial(_file, text)
            yield Case(f"database: {name}, {command[0]}", make, (*command, *db), told="--db FILE")
    for i, text in enumerate(JUNK):
        sql = f"UPDATE runs SET result = {_quoted(text)}"
        for command in commands:
            name = f"database: result {i} {text[:16]!r}, {command[0]}"
            make = functools.partial(damaged, sql)
            yield Case(name, make, (*command, *db), (0, 1))
    for column, values in COLUMNS.items():
        for value in values:
            make = functools.partial(damaged, f"UPDATE {column} = {_quoted(value)}")
            for command in (("results",), ("show", "last"), ("export", "{hash}", "{}/out.json")):
                named = tuple(x.replace("{hash}", _hash()) for x in command)
                name = f"database: {column} {value[:9]!r}, {command[0]}"
                yield Case(name, make, (*named, *db), (0, 1))
    for sql in ("DROP TABLE runs", "DROP TABLE plans", "UPDATE plans SET parameters = NULL"):
        for command in (("results",), ("export", _hash(), "{}/out.json")):
            make = functools.partial(damaged, sql)
            name = f"database: {sql}, {command[0]}"
            yield Case(
                name, make, (*command, *db), (0, 1), absent=("out.json",) * ("plans" in sql)
            )
    yield from _foreign(db)
    yield from _places(db)
    for name in ("_", "%", "", "0%", RUN[:4], "'", '"; DROP TABLE runs; --', "\x1b[2J", "last%"):
        make = functools.partial(whole, runs=3)
        yield Case(f"database: show {name!r}", make, ("show", name, *db))
        yield Case(f"database: pin {name!r}", make, ("pin", name, *db))
    many = functools.partial(whole, runs=2000)
    for command in (("results",), ("results", "--json"), ("show", "last")):
        yield Case(f"database: 2000 runs, {' '.join(command)}", many, (*command, *db), (0,))


@functools.cache
def _hash() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        plan_files.changed(lambda d, t: None)(Path(folder))
        return Plan.load(Path(folder) / "plan.json").hash


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _file(text: bytes, folder: Path) -> None:
    (folder / "a.db").write_bytes(text)


def _foreign(db: tuple[str, ...]) -> Iterator[Case]:
    """Databases of other programs and of other versions."""
    versions = {
        "another program's": "CREATE TABLE theirs (x)",
        "newer": f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=99",
        "of no tables": f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1",
    }
    for name, sql in versions.items():
        for command in (("results",), ("show", "last"), ("unpin", "x")):

            def make(folder: Path, sql: str = sql) -> None:
                connection = sqlite3.connect(folder / "a.db")
                connection.executescript(sql)
                connection.close()

            yield Case(f"database: {name}, {command[0]}", make, (*command, *db))


def _places(db: tuple[str, ...]) -> Iterator[Case]:
    """What is at the place of the file and is none."""
    for kind in ("pipe", "zero", "folder", "link to itself"):
        for command in (("results",), ("import", "{}/plan.json")):

            def make(folder: Path, kind: str = kind) -> None:
                path = folder / "a.db"
                plan_files.changed(lambda d, t: None)(folder)
                if kind == "pipe":
                    os.mkfifo(path)
                elif kind == "folder":
                    path.mkdir()
                else:
                    path.symlink_to("/dev/zero" if kind == "zero" else path)

            # a link that leads nowhere is as good as no file
            fine = (0, 1) if "link" in kind and command[0] == "results" else (1,)
            yield Case(f"database: a {kind}, {command[0]}", make, (*command, *db), fine)
    for command in (("results",), ("show", "last"), ("export", _hash(), "{}/out.json")):
        yield Case(f"database: locked, {command[0]}", _locked, (*command, *db), (0,), limit=20.0)


HELD: list[sqlite3.Connection] = []


def _locked(folder: Path) -> None:
    """A database whose lock another connection holds until it is collected."""
    connection = sqlite3.connect(whole(folder), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    HELD[:] = [connection]
