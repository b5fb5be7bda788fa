"""A database of a hundred thousand measurements: every query of rows goes by an index."""

from __future__ import annotations

import re

import pytest
from many_rows import context, fill

from attnpass.store import Store, compare, key_of, measurements

ROWS, RUNS = 100_000, 500


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("scale") / "a.db") as store:
        fill(store, ROWS, RUNS)
        yield store


SUBJECT = f"{5:016x}"
QUERIES = {
    "get, a hit": lambda s: s.get("accuracy", SUBJECT, context(20)),
    "get, a miss with a reason": lambda s: s.get("accuracy", SUBJECT, {"torch": "3"}),
    "get, never measured": lambda s: s.get("accuracy", "none", {}),
    "runs": lambda s: s.runs(50),
    "runs of a task": lambda s: s.runs(50, task="task 3"),
    "runs since": lambda s: s.runs(50, status="done", since="2026-01-20"),
    "runs, how many": lambda s: s.count_runs(task="3.py:f"),
    "run, the last": lambda s: s.run("last"),
    "run, by its name": lambda s: s.run(f"{499:012d}"),
    "measurements": lambda s: measurements(s, 50),
    "measurements of a kind": lambda s: measurements(s, 50, kind="latency"),
    "measurements of an outcome": lambda s: measurements(s, 50, outcome="oom"),
    "measurements of a task": lambda s: measurements(s, 50, task="task 3"),
    "why": lambda s: compare(s, key_of("accuracy", SUBJECT, context(20))[:12]),
}


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_walks_through_a_table(large, name):
    asked: list[str] = []
    large.db.conn.set_trace_callback(asked.append)
    try:
        QUERIES[name](large)
    finally:
        large.db.conn.set_trace_callback(None)
    asked = [sql for sql in asked if sql.startswith("SELECT")]
    assert asked
    for sql in asked:
        steps = [row[-1] for row in large.db.conn.execute(f"EXPLAIN QUERY PLAN {sql}")]
        walks = [x for x in steps if re.match(r"SCAN (runs|measurements)(?! USING)", x)]
        assert walks == [], f"{sql}: {steps}"


def test_what_is_looked_up_among_many_is_found(large):
    assert large.get("accuracy", SUBJECT, context(20))[0] == {"x": 1, "outcome": "ok"}
    assert large.get("accuracy", SUBJECT, {"torch": "3"})[1] == "torch, weights changed"
    assert measurements(large, 3, kind="latency")[1] == ROWS // 4
    assert len(large.runs(50, task="task 3")) == 50 and large.count_runs(task="3.py:f") == 71
