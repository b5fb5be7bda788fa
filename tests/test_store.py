"""The database: safe with others, honest about misses, clear about files that are not ours."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading

import pytest
import torch

from attnpass.errors import StoreError
from attnpass.plan.entry import Entry
from attnpass.plan.plan import Plan
from attnpass.store import Store, pinned_plans

CONTEXT = {"weights": "w", "data": "d", "torch": "2"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.db"


def plan_of(value: float) -> Plan:
    fits = {"kind": "self", "heads": 2}
    plan = Plan({"a.attn": Entry("hydra", {}, fits, "w1"), "b.attn": Entry("softmax", {}, fits)})
    plan.values["a.attn"] = {"gain": torch.nn.Parameter(torch.full((4,), value))}
    return plan


def test_what_is_put_comes_back_and_survives_reopening(path):
    with Store(path) as store:
        store.put("accuracy", "p", CONTEXT, {"scores": [1.0, 0.0]})
    with Store(path) as store:
        value, why = store.get("accuracy", "p", CONTEXT)
    assert value == {"scores": [1.0, 0.0], "outcome": "ok"}
    assert why == ""


@pytest.mark.parametrize("field", sorted(CONTEXT))
def test_a_changed_context_is_a_miss_that_names_the_field(path, field):
    with Store(path) as store:
        store.put("accuracy", "p", CONTEXT, {"x": 1})
        value, why = store.get("accuracy", "p", {**CONTEXT, field: "other"})
    assert value is None
    assert why == f"{field} changed"


def test_never_measured_is_said(path):
    with Store(path) as store:
        assert store.get("accuracy", "p", CONTEXT) == (None, "never measured")


def test_a_failed_measurement_is_a_hit(path):
    with Store(path) as store:
        store.put("latency", "p", CONTEXT, {"why": "x"}, outcome="crashed")
        value, _ = store.get("latency", "p", CONTEXT)
    assert value == {"why": "x", "outcome": "crashed"}


@pytest.mark.parametrize("column", ["value", "context"])
def test_a_corrupt_row_is_a_miss(path, column):
    with Store(path) as store:
        store.put("accuracy", "p", CONTEXT, {"x": 1})
        with store.transaction():
            store.db.execute(f"UPDATE measurements SET {column} = '{{broken'")
        value, why = store.get("accuracy", "p", CONTEXT)
    assert value is None
    assert "corrupt" in why


def test_plain_sqlite3_reads_it_and_tables_are_strict(path):
    with Store(path) as store:
        store.put("accuracy", "p", CONTEXT, {"x": 1})
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


def test_plans_come_back_with_their_parameters(path):
    plan = plan_of(0.5)
    with Store(path) as store:
        name = store.save_plan(plan)
        again = store.plan(name[:6])
    assert again is not None
    assert again.hash == plan.hash == name
    assert again.sites["a.attn"].weights == "w1"


def test_one_pin_per_structure_and_unpin(path):
    first, second = plan_of(0.5), plan_of(0.7)
    with Store(path) as store:
        store.pin(first)
        store.pin(second)
    assert [p.hash for p in pinned_plans(path)] == [second.hash]
    with Store(path) as store:
        assert not store.unpin(first)
        assert store.unpin(second)
    assert pinned_plans(path) == []


def test_no_database_means_no_pins_and_makes_none(path):
    assert pinned_plans(path) == []
    assert not path.exists()


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
