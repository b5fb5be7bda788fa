"""The benchmark of the tuner's conclusions on a noisy machine, on the tiny task."""

from __future__ import annotations

from scripts import trust
from tuning import opened

from attnpass.store import Store
from attnpass.tuner.search.pieces import PieceLibrary


def test_a_busy_machine_stretches_calls_and_one_thread_may_find_a_processor():
    quiet = [trust.Machine(0, 1).call(10.0, 2) for _ in range(5)]
    assert all(abs(x - 10) < 1 for x in quiet)
    machine = trust.Machine(6, 1)
    taken = [machine.call(10.0, 2) for _ in range(2000)]
    assert max(taken) > 25 and machine.clock == sum(taken)
    one = trust.Machine(1, 1)
    assert max(one.call(10.0, 1) for _ in range(2000)) < 15


def test_the_truth_is_the_committed_run():
    for found in trust.truths().values():
        assert found.base_ms > 1 and len(found.ceilings) == 3
        assert max(found.forms.values()) >= trust.WORTH, "a form worth having"
    assert any(min(found.forms.values()) < 1 for found in trust.truths().values())


def test_conclusions_of_a_quiet_and_of_a_busy_machine(tmp_path):
    known = {"hydra": 1.3, "skipat r=0": 0.8}
    truth = trust.Truth(3.0, known, [1.0, 2.0, 2.0])
    with Store(tmp_path / "a.db") as store:
        inspection, session = opened(store, forms=tuple(known))
        library = PieceLibrary(inspection)
        library.calibrate(session)
        quiet = trust.simulated(inspection, library, truth, 0, 1)
        assert quiet["reliable"] and quiet["excluded"] == {"skipat r=0": 0.8}
        assert quiet["false"] == quiet["lost"] == [] and quiet["regret"] == 0
        for seed in range(3):
            busy = trust.simulated(inspection, library, truth, 6, seed)
            assert busy["false"] == busy["lost"] == []


def test_processes_that_burn_time_are_gone_afterwards(monkeypatch):
    made = []
    start = trust.subprocess.Popen
    monkeypatch.setattr(
        trust.subprocess, "Popen", lambda *x, **y: made.append(start(*x, **y)) or made[-1]
    )
    with trust.burning(2):
        assert [x.poll() for x in made] == [None, None]
    assert all(x.wait() != 0 for x in made)
