"""Workers of a pool on this machine."""

from __future__ import annotations

import threading

import pytest
import torch
from tuning import TINY, Replies

from attnpass.errors import OptionError
from attnpass.tuner.measure import Failure, PackedRequest, Pool, Protocol, Worker, local_workers
from attnpass.tuner.measure.local_pool import LocalWorker, local_devices, visible


class Handle(Replies):
    """A worker's handle without a process."""

    closed = False

    def close(self) -> None:
        self.closed = True


def job(request):
    return (yield request)


def test_every_device_has_a_worker(monkeypatch):
    monkeypatch.setattr("attnpass.tuner.measure.local_pool.identity", lambda *x: {"of": x})
    seen, handles = [], [Handle(None), Handle(None)]

    def make(name: str) -> Handle:
        seen.append(name)
        return handles[len(seen) - 1]

    workers = local_workers(["cuda:0", "cuda:1"], make)
    assert seen == ["0", "1"] and [w.device["of"] for w in workers] == [("cuda", 0), ("cuda", 1)]
    with Pool(workers) as pool:
        found = dict(
            pool.gather({i: job(PackedRequest.of([None], Protocol(1))) for i in range(2)})
        )
    assert [r.outcome for r in found.values()] == ["ok", "ok"]
    assert all(h.closed and h.replies == [] for h in handles)


def test_a_pool_that_closes_does_not_wait_for_a_reply():
    begun = threading.Event()

    class Waits(Handle):
        def ceiling(self, protocol):
            begun.set()
            while not self.stopped():
                pass
            raise KeyboardInterrupt

    answers = []
    worker = LocalWorker("cpu", Waits())
    worker.send(PackedRequest(Protocol(1)), answers.append)
    begun.wait(60)
    worker.close()
    assert answers == [Failure("killed", "the run was stopped")] and worker.worker.closed


@pytest.mark.slow
def test_a_process_of_this_machine_measures():
    with Pool(local_workers(["cpu"], lambda _: Worker(TINY, inner="eager", timeout=240))) as pool:
        assert pool.measure([None], Protocol(2)).outcome == "ok"
        assert pool.workers


def test_devices_are_named(monkeypatch):
    assert local_devices("cpu", "cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_devices("cuda:1, cuda", "cuda") == ["cuda:1", "cuda:0"]
    for text, kind, message in (
        ("cpu", "cuda", "expected devices of cuda:0, cuda:1, on which the task runs, got cpu"),
        ("cuda:2", "cuda", "got cuda:2"),
        ("cuda:0", "cpu", "expected devices of cpu, on which the task runs, got cuda:0"),
        ("cpu,cpu", "cpu", "expected each device once"),
    ):
        with pytest.raises(OptionError, match=message):
            local_devices(text, kind)


def test_a_process_sees_one_gpu_of_those_that_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [visible(x) for x in ("cpu", "cuda:1")] == ["", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible("cuda:1") == "6"
