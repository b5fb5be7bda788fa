"""The measurements that are stored, and what one depends on otherwise than another."""

from __future__ import annotations

import pytest

from attnpass.errors import StoreError
from attnpass.store import Store, compare, key_of, measurements

OLD = {"torch": "1", "switches": {"a": "on", "b": {}}, "gone": 1}
NEW = {"torch": "2", "switches": {"a": "off", "b": {}}, "shapes": [1, 2]}


@pytest.fixture
def store(path, monkeypatch):
    """Two measurements of one subject, and two others; the times are made up."""
    times = iter(range(100))
    monkeypatch.setattr("attnpass.store.store.now", lambda: f"2026-01-01T00:00:{next(times):02d}Z")
    with Store(path) as opened:
        opened.put("latency", "p", OLD, {"times": []}, run="r1")
        opened.put("accuracy", "p", OLD, {"scores": []}, run="r2")
        opened.put("latency", "p", NEW, {"times": []}, run="r2", outcome="oom")
        opened.put("tile", "t", {}, {})
        row = {"status": "done", "settings": {"seed": 0}, "context": {"torch": "2"}}
        opened.save_run({"id": "r1", "created": "1", "task": "a.py:f", "name": "one", **row})
        opened.save_run({"id": "r2", "created": "2", "task": "b.py:f", "name": "two", **row})
        yield opened


def test_measurements_are_listed_newest_first_with_filters(store):
    rows, total = measurements(store)
    assert [r["kind"] for r in rows] == ["tile", "latency", "accuracy", "latency"] and total == 4
    assert set(rows[0]) == {"key", "created", "run", "kind", "subject", "outcome"}
    assert [r["run"] for r in measurements(store, kind="latency")[0]] == ["r2", "r1"]
    assert [r["outcome"] for r in measurements(store, outcome="oom")[0]] == ["oom"]
    for name in ("one", "a.py:f"):
        assert [r["run"] for r in measurements(store, task=name)[0]] == ["r1"]
    rows, total = measurements(store, 1, kind="latency", task="two")
    assert (len(rows), total) == (1, 1)
    rows, total = measurements(store, 2)
    assert (len(rows), total) == (2, 4)
    assert measurements(store, kind="x") == ([], 0)


def test_a_measurement_is_compared_with_the_newest_other(store):
    old, new = key_of("latency", "p", OLD), key_of("latency", "p", NEW)
    want = {
        "gone": {"old": 1},
        "shapes": {"new": [1, 2]},
        "switches.a": {"old": "on", "new": "off"},
        "torch": {"old": "1", "new": "2"},
    }
    for key, other in ((old, new), (new, old)):
        found = compare(store, key[:10])
        assert found.row["key"] == key and found.other["key"] == other
        assert found.changed == want, "whichever was asked for, the older comes first"
    value = found.as_dict()
    assert value["context"]["switches.b"] == {} and value["other"]["outcome"] == "ok"
    assert (value["kind"], value["outcome"], value["run"]) == ("latency", "oom", "r2")


def test_the_reason_of_a_miss_is_what_the_comparison_shows(store):
    value, why = store.get("accuracy", "p", {**OLD, "torch": "3"})
    assert value is None and why == "torch changed"
    store.put("accuracy", "p", {**OLD, "torch": "3"}, {})
    found = compare(store, key_of("accuracy", "p", {**OLD, "torch": "3"}))
    assert list(found.changed) == ["torch"]


def test_one_without_another_has_no_changes(store):
    found = compare(store, key_of("tile", "t", {}))
    assert found.other is None and found.changed == {} and found.as_dict()["other"] is None


def test_a_run_is_compared_with_the_newest_other_of_its_task(store):
    assert compare(store, "r1").other is None
    row = {"status": "running", "settings": {"seed": 1}, "context": {"torch": "2"}}
    store.save_run({"id": "r3", "created": "3", "task": "a.py:f", **row})
    found = compare(store, "last")
    assert (found.row["key"], found.other["key"]) == ("r3", "r1")
    assert found.changed == {"settings.seed": {"old": 0, "new": 1}}
    assert found.row["context"]["torch"] == "2" and found.row["kind"] == "run"


def test_no_key_several_and_a_damaged_row_are_one_line(store):
    for name in ("", "zz", "%"):
        with pytest.raises(StoreError, match="attnpass results --measurements lists them"):
            compare(store, name)
    key = key_of("tile", "t", {})
    row = {"created": "4", "task": "t", "status": "done", "settings": {}, "context": {}}
    store.save_run({"id": f"{key[:6]}x", **row})
    with pytest.raises(StoreError, match="expected the beginning of one key"):
        compare(store, key[:3])
    assert compare(store, key).row["kind"] == "tile"
    assert compare(store, f"{key[:6]}x").row["kind"] == "run"
    with store.transaction():
        store.db.execute("UPDATE measurements SET context = '[' WHERE kind != 'accuracy'")
    with pytest.raises(StoreError, match="got a damaged row; the next run measures it again"):
        compare(store, key)
