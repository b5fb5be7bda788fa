"""The database file: safe beside other processes, clear about files that are not ours."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading

import pytest

from attnpass.errors import StoreError
from attnpass.store import Store


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
from attnpass.store import Store
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
