"""The run or the plan that a user names."""

from __future__ import annotations

import pytest

from attnpass.errors import PlanError, StoreError
from attnpass.store import Store
from attnpass.tuner.cli.lookup import plan_named, result_named


def save(store: Store, name: str, status: str, result: dict | None) -> None:
    row = {"id": name, "created": name, "task": "t", "status": status, "settings": {}}
    store.save_run(row | {"context": {}, "result": result})


@pytest.fixture
def store(tmp_path, stored):
    with Store(tmp_path / "a.db") as opened:
        with Store(stored[0]) as other:
            opened.save_plan(other.plan(stored[2]))
        yield opened


def test_a_plan_is_a_file_a_hash_or_the_best_of_a_run(store, stored):
    _, path, name = stored
    save(store, "1run", "done", {"best": name})
    assert plan_named(store, str(path)).hash == name
    for other in (name, name[:6], "1run", "last"):
        assert plan_named(store, other).hash == name


def test_a_run_without_a_proven_plan_and_no_run_are_errors(store):
    with pytest.raises(PlanError, match="expected a plan file, a plan or a run of .*'zzz'"):
        plan_named(store, "zzz")
    save(store, "1run", "done", {"best": None})
    with pytest.raises(PlanError, match="expected a run with a proven plan, got 1run without one"):
        plan_named(store, "1run")
    save(store, "2run", "done", {"best": "nowhere"})
    with pytest.raises(PlanError, match="attnpass results lists them"):
        plan_named(store, "2run")


def test_a_result_is_that_of_a_finished_run(store):
    with pytest.raises(StoreError, match="expected a run in .*, got 'last'; attnpass results"):
        result_named(store, "last")
    save(store, "1run", "done", {"best": None})
    assert result_named(store, "1r").best is None
    save(store, "2run", "running", None)
    with pytest.raises(StoreError, match="got 2run which is running; run the same tune command"):
        result_named(store, "2run")
