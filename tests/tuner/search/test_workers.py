"""Who takes latencies: one class of workers, whose measurements have keys of their own."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from scripts import scale
from tuning import QUIET, TINY, opened

from attnpass.errors import OptionError
from attnpass.store import Store
from attnpass.tuner.measure import PackedRequest, Times, identity
from attnpass.tuner.search import execute, pool_of, workers
from attnpass.tuner.search.pieces import PieceLibrary

NARROW = {"isa": "AVX2", "threads": 3}


def simulated(clock, name: str, **device) -> scale.SimulatedWorker:
    """A worker that times any plan: each is faster than the one before."""

    def answers(request: PackedRequest):
        rounds = request.protocol.rounds
        if request.plans is None:
            return 10.0, Times([[x] * rounds for x in (3.0, 3.0, 3.0, 1.0, 0.5)], [])
        hashes = ["" if p is None else p.plan().hash for p in request.plans]
        return 10.0, Times([[3.0 if h == "" else 2.0] * rounds for h in hashes], hashes)

    return scale.SimulatedWorker(name, clock, answers, {**identity("cpu"), **device})


@pytest.fixture
def cluster(monkeypatch):
    """A cluster in this process: two workers of one class, one of another."""
    clock = scale.Clock()
    made = [simulated(clock, "a"), *(simulated(clock, x, **NARROW) for x in "bc")]
    setups = []

    @contextmanager
    def ray_workers(address, setup, say):
        setups.append((address, setup))
        yield made

    real = workers.Pool
    monkeypatch.setattr(workers, "ray_workers", ray_workers)
    monkeypatch.setattr(workers, "Pool", lambda *x, **more: real(*x, **more, inbox=clock))
    return made, setups


def test_one_process_is_the_default(tmp_path):
    with Store(tmp_path / "a.db") as store:
        inspection, _ = opened(store)
        with pool_of(inspection, store, print) as pool:
            assert pool is None
        worker = workers.one_worker(inspection, store, lambda: True)
    assert (worker.task, worker.settings.inner, worker.settings.db) == (
        TINY,
        "eager",
        str(tmp_path / "a.db"),
    )
    assert worker.stopped() and worker.settings.weights


def test_the_most_common_class_measures_and_the_others_are_idle(tmp_path, cluster):
    made, setups = cluster
    said = []
    with Store(tmp_path / "a.db") as store:
        inspection, _ = opened(store, ray="auto")
        assert "ray" not in inspection.asked and "devices" not in inspection.asked
        with pool_of(inspection, store, said.append) as pool:
            assert [w.name for w in pool.workers] == ["b", "c"] and made[0].closed
            assert pool.timeout == inspection.settings.timeout
        moved = inspection.measured_by(pool.device, store)
        same = inspection.measured_by(identity("cpu"), store)
    assert "latencies are taken by 2 of 3 workers" in said[0] and "AVX2, 3 threads" in said[0]
    assert "worker a (" in said[1] and "is left idle" in said[1]
    assert "other isa, threads; --devices chooses another class" in said[1]
    ((address, setup),) = setups
    assert address == "auto" and setup.source and setup.settings.inner == "eager"
    assert moved.timing == {**inspection.timing, **NARROW} and moved.run != inspection.run
    assert (same.timing, same.run) == (inspection.timing, inspection.run)


def test_a_class_can_be_asked_for(tmp_path, cluster):
    with Store(tmp_path / "a.db") as store:
        own = identity("cpu")["isa"]
        inspection, _ = opened(store, ray="auto", devices=f"{own}, 1 thread")
        with pool_of(inspection, store, lambda text: None) as pool:
            assert [w.name for w in pool.workers] == ["a"]
        inspection, _ = opened(store, ray="auto", devices="H100")
        with (
            pytest.raises(OptionError, match="expected a worker whose device is like 'H100'"),
            pool_of(inspection, store, print),
        ):
            pass


def test_a_process_per_device(tmp_path, monkeypatch):
    handles = []

    def local_workers(names, make):
        handles.extend((name, make("3")) for name in names)
        return [simulated(scale.Clock(), name) for name in names]

    monkeypatch.setattr(workers, "local_workers", local_workers)
    with Store(tmp_path / "a.db") as store:
        inspection, _ = opened(store, devices="cpu")
        with pool_of(inspection, store, lambda text: None) as pool:
            assert [w.name for w in pool.workers] == ["cpu"]
    ((name, worker),) = handles
    assert name == "cpu" and worker.settings.visible == "3" and worker.process is None


def test_a_run_by_a_pool_measures_once_under_the_keys_of_its_class(tmp_path, cluster):
    """The whole run, with times that are made up."""
    made, _ = cluster
    with Store(tmp_path / "a.db") as store:
        inspection, _ = opened(store, ray="auto")
        with pool_of(inspection, store, lambda text: None) as pool:
            inspection = inspection.measured_by(pool.device, store)
            result = execute(inspection, store, QUIET, pool=pool)
        assert result.status == "done" and result.front and result.run == inspection.run
        kinds = ("latency", "ceiling")
        rows = [r for r in store.db.query("SELECT * FROM measurements") if r["kind"] in kinds]
        contexts = [json.loads(r["context"]) for r in rows]
        assert {(c["isa"], c["threads"]) for c in contexts} == {("AVX2", 3)}
        assert len({r["subject"] for r in rows}) == len(rows) == pool.counts["sent"]
        assert made[0].asked == 0 and all(w.asked for w in made[1:])


@pytest.mark.parametrize("seed", range(3))
def test_no_measurement_is_lost_or_doubled_whatever_becomes_of_the_workers(tmp_path, seed):
    """The benchmark of many workers, small and with many more faults."""
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store)
        library = PieceLibrary(inspection)
        library.calibrate(session)
    plans = scale.many_plans(library, inspection, 17)
    costs = scale.Costs([20.0, 24.0], [0.1, 0.2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "SLOW", 0.3)
        patch.setattr(scale, "LOST", 0.5)
        patch.setattr(scale, "FAULTS", {"hangs": 0.1, "killed": 0.1, "crashed": 0.1})
        found = scale.simulated(inspection, plans, 5, costs, seed)
    assert found["missing"] == found["doubled"] == 0 and found["rows"] == len(plans)
    assert found["sent"] > len(plans) and 0 < found["coordinator_share"] < 1


def test_the_recorded_durations_are_those_of_committed_runs():
    costs = scale.recorded()
    assert len(costs.compiling) == 3 and min(costs.compiling) > 20
    assert len(costs.timing) == 5 and 0.05 < min(costs.timing) < max(costs.timing) < 0.2
