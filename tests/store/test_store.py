"""The rows of the database: they come back, or the miss has a reason."""

from __future__ import annotations

import json
import shutil

import house
import pytest
import torch

from attnpass.errors import PlanError, StoreError
from attnpass.kernels.tile import Tile
from attnpass.plan import Entry, Plan
from attnpass.store import Store, measured_tiles, pinned_plans

CONTEXT = {"weights": "w", "data": "d", "torch": "2"}


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


AGED = house.ROOT / "tests" / "aged"
"""A database written before the modules were moved into rooms; its README says how."""


@pytest.fixture
def aged(path):
    shutil.copy(AGED / "attnpass.db", path)
    return path


def test_an_aged_database_holds_its_run(aged):
    with Store(aged) as store:
        (run,) = store.runs()
        assert store.run("last") == store.run(run["id"][:5]) == run
    assert (run["task"], run["status"]) == ("tests/tiny_tasks.py:tiny", "done")
    assert run["settings"]["trials"] == 4 and run["settings"]["inner"] == "eager"
    result = run["result"]
    assert result["run"] == run["id"] and result["tried"] == 3
    (point,) = result["front"]
    assert point["plan"] == result["best"]
    assert list(point["forms"].values()) == ["softmax", "hydra", "skipat r=0"]


def test_an_aged_database_holds_its_plans_pin_and_tile(aged):
    facts = json.loads((AGED / "facts.json").read_text())
    with Store(aged) as store:
        best = store.run("last")["result"]["best"]
        plans = [store.plan(name) for name in (best, facts["hash"])]
        assert [plan.hash for plan in plans] == [best, facts["hash"]]
        assert plans[1].tensors().keys() == Plan.load(AGED / "plan.json").tensors().keys()
    (pinned,) = pinned_plans(aged)
    assert (pinned.hash, pinned.structure) == (facts["hash"], facts["structure"])
    tile = {"sigmoid forward 8x256x256x16 float32 full": Tile(block_m=64)}
    assert measured_tiles(aged, {"device": "somewhere"}) == tile
    assert measured_tiles(aged, {"device": "elsewhere"}) == {}


def test_an_aged_measurement_is_a_miss_that_names_what_changed(aged):
    with Store(aged) as store:
        (row,) = store.db.query("SELECT * FROM measurements WHERE kind = 'ceiling'")
        context = json.loads(row["context"])
        value, why = store.get("ceiling", row["subject"], context)
        assert why == "" and value["outcome"] == "ok"
        key = sorted(context)[0]
        value, why = store.get("ceiling", row["subject"], {**context, key: "other"})
    assert value is None and why == f"{key} changed"


def test_a_plan_with_a_corrupt_row_is_one_line(path):
    plan = plan_of(0.5)
    for change in ("document = '{broken'", "parameters = x'00ff'"):
        with Store(path) as store:
            store.pin(plan)
            with store.transaction():
                store.db.execute(f"UPDATE plans SET {change}")
        with pytest.raises(PlanError, match=f"expected plan {plan.hash} in .*a corrupt row"):
            pinned_plans(path)


def test_tiles_of_another_context_or_of_a_corrupt_row_are_no_hit(path):
    assert measured_tiles(path, CONTEXT) == {} and not path.exists()
    with Store(path) as store:
        store.put_tile("a", CONTEXT, Tile(block_m=64), {"ms": 1.0})
        store.put_tile("a", {**CONTEXT, "data": "e"}, Tile(block_m=32), {"ms": 1.0})
        store.put_tile("b", CONTEXT, Tile(block_m=16), {"ms": 1.0})
        with store.transaction():
            store.db.execute("UPDATE tiles SET tile = '{' WHERE context LIKE '%\"b\"%'")
    assert measured_tiles(path, CONTEXT) == {"a": Tile(block_m=64)}


def test_tiles_go_to_another_database(path, tmp_path):
    with Store(path) as store, Store(tmp_path / "b.db") as other:
        store.put_tile("a", CONTEXT, Tile(block_m=64), {"ms": 1.0})
        other.add_tile_rows(store.tile_rows())
        other.add_tile_rows([])
        assert other.tiles(CONTEXT) == {"a": Tile(block_m=64)}


def test_runs_are_updated_and_found_by_prefix(path):
    row = {"created": "2026", "task": "t", "settings": {"a": 1}, "context": {}}
    with Store(path) as store:
        store.save_run({"id": "ab1", "status": "running", **row})
        store.save_run({"id": "cd2", "status": "running", **row})
        store.save_run({"id": "ab1", "status": "done", "result": {"x": 1}, **row})
        assert [r["id"] for r in store.runs()] == ["cd2", "ab1"]
        assert store.run("a")["result"] == {"x": 1} and store.run("last")["id"] == "cd2"
        assert store.run("zz") is None
        with store.transaction():
            store.db.execute("UPDATE runs SET result = '{broken' WHERE id = 'ab1'")
        assert store.run("ab1")["result"] == {}


def fill(store, count, result):
    """Runs with ids of twelve digits, each newer than the one before."""
    row = {"task": "t", "status": "done", "settings": {}, "context": {}, "result": result}
    for i in range(count):
        store.save_run({"id": f"{i:012d}", "created": f"2026-01-01T00:00:{i:06d}", **row})


def test_a_name_is_exact_or_the_beginning_of_one_alone(path):
    with Store(path) as store:
        fill(store, 12, {})
        store.save_run({**store.run("last"), "id": "0000"})
        plan = store.save_plan(plan_of(1.0))
        assert store.run("last")["id"] == "0000", "the newest"
        assert store.run("000000000011")["id"] == store.run("00000000001" + "1")["id"]
        assert store.run("0000")["id"] == "0000", "exact, though others begin so"
        for name in ("", "_", "%", "0%", "x", "0000000000110"):
            assert store.run(name) is None
        for name in ("", "_", "%", plan[:3] + "%", plan.upper() if plan.upper() != plan else "_"):
            assert store.plan(name) is None
        with pytest.raises(StoreError, match="with which 2 begin: 000000000010, 000000000011"):
            store.run("00000000001")
        other = store.save_plan(plan_of(2.0))
        common = next(i for i, (a, b) in enumerate(zip(plan, other, strict=True)) if a != b)
        assert store.plan(plan[: common + 1]).hash == plan


def test_the_newest_runs_are_counted_and_listed(path):
    with Store(path) as store:
        fill(store, 12, {"x": 1})
        assert [r["id"][-2:] for r in store.runs(3)] == ["11", "10", "09"]
        assert len(store.runs()) == store.count_runs() == 12


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 10**5])
def test_damaged_columns_are_empty_or_no_hit(path, text):
    with Store(path) as store:
        fill(store, 1, {"x": 1})
        store.put("accuracy", "p", CONTEXT, {"x": 1})
        store.put_tile("c", CONTEXT, Tile(), {})
        store.db.execute("UPDATE runs SET result = ?, settings = ?", [text, text])
        store.db.execute("UPDATE measurements SET context = ?", [text])
        store.db.execute("UPDATE tiles SET tile = ?", [text])
        assert store.run("last")["result"] == {} == store.run("last")["settings"]
        assert store.get("accuracy", "p", CONTEXT) == (None, "the stored row is corrupt")
        assert store.get("accuracy", "p", {}) == (None, "the stored row is corrupt")
        assert store.tiles(CONTEXT) == {}


@pytest.mark.parametrize(
    "change",
    [
        "document = '{}'",
        "document = '[1]'",
        "document = replace(document, 'hydra', 'relu')",
        "parameters = NULL",
        "parameters = x'00'",
        "parameters = zeroblob(1000)",
    ],
)
def test_a_damaged_plan_is_refused(path, change):
    with Store(path) as store:
        name = store.save_plan(plan_of(1.0))
        store.db.execute(f"UPDATE plans SET {change}")
        with pytest.raises(PlanError, match=f"expected plan {name} in .*, got a corrupt row"):
            store.plan(name)


def test_a_plan_that_re_emits_softmax_is_found_under_its_hash(path):
    plan = plan_of(1.0)
    plan.round_trip = True
    with Store(path) as store:
        assert store.plan(store.save_plan(plan)) is not None
