"""A worker elsewhere: all that it needs comes with its setup."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from tuning import TINY, failed

from attnpass.errors import TaskError
from attnpass.kernels.tile import Tile
from attnpass.store import Store
from attnpass.tuner.measure import CompileSettings, Failure, PackedRequest, Protocol, Setup, host
from attnpass.tuner.measure.packing import PackedPlan

ASK = PackedRequest(Protocol(1))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a host whose worker gives a reply, and no process is started."""
    hosts = []

    def make(task: str = TINY, reply=None, **settings) -> host.Host:
        with Store(tmp_path / "a.db") as store:
            store.put_tile("a", {"device": "x"}, Tile(block_m=64), {})
            setup = Setup.of(task, CompileSettings(**settings), 9.0, "cpu", store)
        hosts.append(host.Host(pickle.loads(pickle.dumps(setup))))
        monkeypatch.setattr(hosts[-1].worker, "ceiling", lambda protocol: reply)
        return hosts[-1]

    yield make
    for one in hosts:
        one.close()


def test_the_file_of_the_task_and_the_tiles_are_sent_along(made):
    one = made(inner="eager", mode="x", db="/coordinator.db", weights="w")
    path = one.worker.task.rpartition(":")[0]
    assert Path(path).read_bytes() == Path(TINY.rpartition(":")[0]).read_bytes()
    compiling = one.worker.settings
    assert (compiling.inner, compiling.mode, compiling.weights) == ("eager", "x", "w")
    with Store(compiling.db) as store:
        assert store.tiles({"device": "x"}) == {"a": Tile(block_m=64)}
    one.close()
    assert not Path(path).exists()


def test_threads_and_openmp_are_those_of_the_coordinator(made, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    one = made()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert one.device()["threads"] == torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    setup = Setup(TINY, None, CompileSettings(), 1.0, "cpu", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray does
    host.Host(setup).close()
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_module_that_is_not_installed_there_is_named(made, tmp_path):
    assert made("digits").device()["device"]
    for task in ("no_such_package.task:make", "no_such_module:make"):
        with pytest.raises(TaskError, match=r"expected the module no_such_\S+ to be installed"):
            made(task).device()
    with pytest.raises(TaskError, match="expected to read .*gone.py, got No such file"):
        made(f"{tmp_path}/gone.py:task")


def test_replies_are_those_of_the_worker(made):
    assert made(reply=failed("oom")).answer(ASK) == failed("oom")
    why = "TaskError: expected task x.py:task to import, got ModuleNotFoundError: helpers"
    found = made(reply=Failure("compile_error", why)).answer(ASK)
    assert found.why == (
        f"{why}; a worker elsewhere has the task's one file, and no other file of the"
        " coordinator's"
    )
    damaged = PackedRequest(Protocol(1), (PackedPlan("", '{"sites": 3}'),))
    found = made().answer(damaged)
    assert found.outcome == "compile_error" and "expected a plan" in found.why


def test_a_host_that_closes_ends_the_wait(made):
    one = made()

    def waits(protocol):
        one.close()
        assert one.worker.stopped()
        raise KeyboardInterrupt

    one.worker.ceiling = waits
    assert one.answer(ASK) == Failure("killed", "the run was stopped")
