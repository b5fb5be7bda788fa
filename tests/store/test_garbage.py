"""What nobody will read again goes; what somebody may read stays, whatever else happens."""

from __future__ import annotations

import os
import time

import forked
import pytest
import torch

from attnpass.plan import Delta, Entry, Plan
from attnpass.store import Store, ago, collect_garbage, find_garbage
from attnpass.store.garbage import RECENT
from attnpass.store.tensor_files import GRACE

HERE = {"kernels": "k", "torch": "2"}
LONG_AGO = ago(90 * 86400)


def plan_of(value: float, width: int = 8) -> Plan:
    plan = Plan({"a": Entry("hydra", {}, {"kind": "self"}, "w")})
    plan.values["a"] = {"gain": torch.nn.Parameter(torch.full((4,), value))}
    delta = Delta(torch.Size([width, width]))
    torch.nn.init.constant_(delta.full, value)
    plan.deltas["a"] = {"a.qkv": delta}
    return plan


@pytest.fixture
def store(path):
    with Store(path) as opened:
        yield opened


def age(store: Store, table: str = "measurements", which: str = "1", created: str = LONG_AGO):
    """Let rows have been written long ago."""
    with store.transaction():
        store.db.execute(f"UPDATE {table} SET created = ? WHERE {which}", [created])


def subjects(store: Store) -> set[str]:
    return {r["subject"] for r in store.db.query("SELECT subject FROM measurements")}


def run(store: Store, name: str, **more) -> None:
    row = {"created": ago(0), "task": "t", "status": "done", "settings": {}, "context": {}}
    store.save_run({"id": name, **row, **more})


def test_measurements_of_another_installation_go(store):
    for name, context in (
        ("here", HERE),
        ("kernels", {**HERE, "kernels": "other"}),
        ("torch", {**HERE, "torch": "1"}),
        ("less", {"kernels": "k"}),
        ("none", {}),
    ):
        store.put("accuracy", name, context, {"scores": [1.0]})
    store.put("accuracy", "damaged", {**HERE, "x": 1}, {})
    with store.transaction():
        store.db.execute("UPDATE measurements SET context = '[' WHERE subject = 'damaged'")
    removed = collect_garbage(store, HERE)
    assert subjects(store) == {"here", "less", "none"}
    assert removed.measurements == 3 and removed.compacted
    assert removed.reasons == {"kernels": 1, "torch": 1, "damaged": 1}
    assert collect_garbage(store, HERE).measurements == 0


def test_tiles_of_another_installation_go_too(store):
    from attnpass.kernels.tile import Tile

    store.put_tile("a", HERE, Tile(), {})
    store.put_tile("a", {**HERE, "torch": "1"}, Tile(), {})
    removed = collect_garbage(store, HERE, before=ago(-60))
    assert (removed.tiles, removed.measurements) == (1, 0)
    assert store.tiles(HERE) and not store.tiles({**HERE, "torch": "1"})


def test_old_measurements_go_where_it_is_asked_for(store):
    for name in ("old", "new"):
        store.put("accuracy", name, HERE, {})
    age(store, which="subject = 'old'")
    assert collect_garbage(store, HERE).measurements == 0
    removed = collect_garbage(store, HERE, before=ago(30 * 86400))
    assert removed.reasons == {"age": 1} and subjects(store) == {"new"}


def test_what_rests_on_a_baseline_that_is_gone_goes(store):
    store.put("accuracy", "baseline scores", HERE, {"mark": "m1"})
    for mark in ("m1", "m2"):
        store.put("latency", f"on {mark}", {**HERE, "baseline": mark}, {})
    run(store, "r", status="running")
    store.put("latency", "of a run", {**HERE, "baseline": "m3"}, {}, run="r")
    removed = collect_garbage(store, HERE)
    assert removed.reasons == {"baseline": 1}
    assert subjects(store) == {"baseline scores", "on m1", "of a run"}


def test_plans_that_something_names_stay(store):
    plans = {name: plan_of(i / 8) for i, name in enumerate(("pin", "front", "row", "nobody"))}
    for plan in plans.values():
        store.save_plan(plan)
    store.pin(plans["pin"])
    store.put("accuracy", f"held out {plans['row'].hash}", HERE, {})
    run(store, "r", result={"front": [{"plan": plans["front"].hash}]})
    assert collect_garbage(store, HERE).plans == 0, "they are new: a run may be about to name them"
    age(store, "plans")
    removed = collect_garbage(store, HERE)
    assert removed.plans == 1 and store.plan(plans["nobody"].hash) is None
    for name in ("pin", "front", "row"):
        assert store.plan(plans[name].hash) is not None
    # the last that names it goes, and then the plan
    removed = collect_garbage(store, {"kernels": "other"})
    assert (removed.measurements, removed.plans) == (1, 1)
    assert {p.hash for p in store.pinned()} == {plans["pin"].hash}


def test_files_of_plans_that_are_gone_go_and_shared_ones_stay(store):
    kept, gone = plan_of(0.5, 128), plan_of(0.25, 128)
    for plan in (kept, gone):
        store.save_plan(plan)
    run(store, "r", result={"best": kept.hash})
    age(store, "plans")
    half = store.files.folder / "cafe.safetensors.123"
    half.write_bytes(b"x" * 1000)
    foreign = store.files.folder / "README"
    foreign.write_text("mine")
    assert collect_garbage(store, HERE).files == 0, "they are new: a row may be about to name them"
    for path in store.files.folder.iterdir():
        os.utime(path, (0, 0))
    removed = collect_garbage(store, HERE)
    assert removed.files == 2 and removed.bytes > 2**16 and not half.exists() and foreign.exists()
    assert store.plan(kept.hash).hash == kept.hash and GRACE < RECENT


def test_a_run_that_is_going_on_keeps_its_measurements(store):
    run(store, "going", status="running")
    run(store, "resumed", status="running", created=LONG_AGO)
    run(store, "killed", status="running", created=LONG_AGO)
    for name in ("going", "resumed", "killed"):
        store.put("accuracy", name, HERE, {"plan": plan_of(0.5).hash}, run=name)
    age(store, which="run = 'killed'")
    removed = collect_garbage(store, {"kernels": "other"}, before=ago(-60))
    assert removed.measurements == 1 and subjects(store) == {"going", "resumed"}


def test_a_dry_run_says_the_same_and_writes_nothing(store, path):
    store.put("accuracy", "here", HERE, {})
    plan = plan_of(0.5, 128)
    store.save_plan(plan)
    store.put("accuracy", plan.hash, {"kernels": "other"}, {"scores": [1.0] * 1000})
    age(store, "plans")
    for file in store.files.folder.iterdir():
        os.utime(file, (0, 0))
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    with Store(path, read=True) as reader:
        told = find_garbage(reader, HERE)
    assert path.read_bytes() == content and subjects(store) == {"here", plan.hash}
    assert not told.compacted and told.bytes > 2**16 + 4000
    done = collect_garbage(store, HERE)
    assert told.as_dict() | {"bytes": 0, "compacted": True} == done.as_dict() | {"bytes": 0}
    assert (done.measurements, done.plans, done.files) == (1, 1, 1)


def test_an_empty_and_an_absent_database_have_none(store, path):
    assert collect_garbage(store, HERE).measurements == 0
    with Store(path.with_name("none.db"), read=True) as absent:
        assert find_garbage(absent, HERE).as_dict()["bytes"] == 0


def test_it_waits_for_no_reader(store, path):
    """Beside a reader in the middle of a query all is removed."""
    store.put("accuracy", "x", {"kernels": "other"}, {})
    with Store(path, read=True) as reader:
        reader.db.execute("BEGIN")
        reader.db.execute("SELECT * FROM measurements").fetchone()
        store.db.execute("PRAGMA busy_timeout=10")
        assert collect_garbage(store, HERE).measurements == 1
    assert subjects(store) == set()


def test_a_writer_at_the_same_time_loses_nothing(store, path, monkeypatch):
    """Files are removed the moment no plan names them, while another process stores plans."""
    monkeypatch.setattr("attnpass.store.garbage.GRACE", -60.0)

    def write():
        with Store(path) as own:
            for i in range(10):
                name = own.save_plan(plan_of(i / 64, 128))
                own.put("accuracy", name, HERE, {"i": i})
                assert own.plan(name).hash == name

    with (path.parent / "err").open("w+") as err:
        writer = forked.start(write, err.fileno(), err.fileno())
        while (ended := os.waitpid(writer, os.WNOHANG))[0] == 0:
            collect_garbage(store, HERE)
            time.sleep(0.05)  # a writer needs a moment between file and row
        err.seek(0)
        assert ended[1] == 0, err.read()
    names = [r["subject"] for r in store.db.query("SELECT subject FROM measurements")]
    assert len(names) == 10 and all(store.plan(name).hash == name for name in names)


def test_a_checkpoint_goes_for_its_age_alone(store):
    old, new = (store.path.with_suffix(f".{name}.distil") for name in ("aaaa", "bbbb"))
    foreign = store.path.with_name(f"other.{store.path.stem}.distil")
    for file in (old, new, foreign):
        file.write_bytes(bytes(1000))
    for file in (old, foreign):
        os.utime(file, (time.time() - 100 * 86400,) * 2)
    assert collect_garbage(store, HERE).files == 0 and old.exists()
    assert find_garbage(store, HERE, LONG_AGO).files == 1 and old.exists()
    removed = collect_garbage(store, HERE, LONG_AGO)
    assert removed.files == 1 and removed.bytes >= 1000
    assert not old.exists() and new.exists() and foreign.exists()
