"""The database file: safe beside other processes, clear about files that are not ours."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from attnpass.errors import StoreError
from attnpass.store import Store, database


def test_plain_sqlite3_reads_it_and_tables_are_strict(path):
    with Store(path) as store:
        store.put("accuracy", "p", {}, {"x": 1})
    connection = sqlite3.connect(path)
    row = connection.execute("SELECT kind, subject, value FROM measurements").fetchone()
    strict = dict(connection.execute("SELECT name, strict FROM pragma_table_list").fetchall())
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    connection.close()
    assert row == ("accuracy", "p", json.dumps({"x": 1}))
    assert all(strict[t] for t in ("runs", "measurements", "plans", "pins", "tiles"))
    assert mode == "wal"


def test_a_transaction_that_fails_leaves_nothing(path):
    with Store(path) as store:
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.db.execute("INSERT INTO tiles VALUES ('k', 'now', '{}', '{}', '{}')")
            _ = 1 / 0
        assert store.db.table("tiles").count == 0


def test_a_foreign_database_is_refused_and_untouched(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's.*--db FILE"):
        Store(path)
    assert path.read_bytes() == before


def test_a_corrupt_file_is_one_line(path):
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="expected a readable and writable.*not a database"):
        Store(path)


def test_a_newer_version_is_refused(path):
    with Store(path) as store:
        store.db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="got 99; upgrade attnpass"):
        Store(path)


def test_a_folder_in_the_way_is_one_line(tmp_path):
    with pytest.raises(StoreError, match="--db FILE"):
        Store(tmp_path)


WRITER = """
import sys
from attnpass.store import Store, database
with Store(sys.argv[1]) as store:
    for i in range(60):
        with store.transaction():
            n = store.db.execute("SELECT count(*) FROM tiles").fetchone()[0]
            store.db.execute("INSERT INTO tiles VALUES (?, 'now', '{}', '{}', ?)",
                             [f"{sys.argv[2]}-{i}", str(n)])
"""


def test_processes_at_once_lose_nothing(path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(i)]) for i in range(4)
    ]
    assert [w.wait(120) for w in writers] == [0, 0, 0, 0]
    with Store(path) as store:
        seen = sorted(int(r["value"]) for r in store.db.query("SELECT value FROM tiles"))
    # every read-then-write saw all earlier writes: the counts are all different
    assert seen == list(range(240))


def test_a_database_made_while_it_is_opened_is_no_foreign_one(path, monkeypatch):
    others = []

    class Connection(sqlite3.Connection):
        def execute(self, sql, *arguments):
            if "sqlite_master" in sql and not others:
                others.append(threading.Thread(target=lambda: Store(path).__exit__()))
                others[0].start()
                others[0].join(1)
            return super().execute(sql, *arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, factory=Connection, **o))
    with Store(path) as store:
        assert store.db.execute("SELECT count(*) FROM tiles").fetchone() == (0,)
    others[0].join()


def held(path):
    """A connection that holds the lock of a database for writing."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_a_reader_waits_for_nobody_and_writes_nothing(path):
    with Store(path) as store:
        store.put("accuracy", "p", {}, {"x": 1})
    writer, before = held(path), path.read_bytes()
    began = time.monotonic()
    with Store(path, read=True) as store:
        assert store.get("accuracy", "p", {})[0] == {"x": 1, "outcome": "ok"}
        with pytest.raises(StoreError, match="readonly"):
            store.put("accuracy", "q", {}, {})
    assert time.monotonic() - began < 20, "half a minute is the patience of those that write"
    writer.close()
    assert path.read_bytes() == before


def test_reading_makes_no_file_and_finds_nothing(path):
    for content in (None, b""):
        if content is not None:
            path.write_bytes(content)
        with Store(path, read=True) as store:
            assert store.runs() == [] and store.run("last") is None
            assert store.plan("x") is None and store.pinned() == [] and store.tiles({}) == {}
        assert path.exists() == (content is not None)


def test_a_pipe_or_a_device_is_no_database(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", "/dev/zero", tmp_path):
        for read in (False, True):
            with pytest.raises(StoreError, match="not a regular file"):
                Store(other, read=read)


def test_an_older_version_is_not_brought_up_by_reading(path, monkeypatch):
    Store(path).__exit__()
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE more (x)"))
    with Store(path, read=True) as store:
        assert store.version == len(database.MIGRATIONS) - 1 and store.runs() == []
    Store(path).__exit__()
    with Store(path, read=True) as store:
        assert store.db.table("more").count == 0


def test_a_folder_that_is_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff#?%20") / "a.db"
    with Store(path) as store:
        store.put("accuracy", "p", {}, {"x": 1})
    with Store(path, read=True) as store:
        assert store.get("accuracy", "p", {})[0] is not None
