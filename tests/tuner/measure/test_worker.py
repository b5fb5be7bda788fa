"""The worker: proves plans, and its end is an outcome, never the run's end."""

from __future__ import annotations

import json

import pytest
from tuning import TASKS, TINY

from attnpass import Plan
from attnpass.errors import MeasureError
from attnpass.task import load_task
from attnpass.tuner.measure import worker as module
from attnpass.tuner.measure.exchange import CeilingRequest, Failure, Protocol, Times
from attnpass.tuner.measure.worker import ATTEMPTS, Worker, failure


@pytest.mark.parametrize(
    ("factory", "timeout", "outcome"), [("crashes", 60, "crashed"), ("hangs", 3, "timeout")]
)
def test_a_worker_that_dies_is_an_outcome_and_is_replaced(factory, timeout, outcome):
    with Worker(f"{TASKS}:{factory}", timeout=timeout, inner="eager") as worker:
        reply = worker.measure([None], Protocol(2))
        assert reply.outcome == outcome
        assert worker.process is None
        worker.task, worker.timeout = TINY, 120
        assert worker.measure([None], Protocol(2)).outcome == "ok"


def test_worker_proves_the_plan_and_refuses_a_wrong_one(tmp_path):
    task = load_task(TINY)
    plan = Plan.create(task.model, *task.example, form="hydra")
    path = str(plan.save(tmp_path / "plan.json"))
    other = json.loads((tmp_path / "plan.json").read_text())
    other["sites"]["blocks.0.attn"]["fits"]["heads"] = 99
    (tmp_path / "other.json").write_text(json.dumps(other))
    with Worker(TINY, timeout=120, inner="eager") as worker:
        good = worker.measure([None, path], Protocol(2))
        bad = worker.measure([str(tmp_path / "other.json")], Protocol(2))
    assert good.outcome == "ok"
    assert good.hashes == ["", plan.hash]
    assert [len(t) for t in good.times] == [2, 2]
    assert bad.outcome == "compile_error"
    assert "heads 99" in bad.why


def test_a_wait_ends_where_the_run_is_to_stop():
    with (
        Worker(f"{TASKS}:hangs", inner="eager", stopped=lambda: True) as worker,
        pytest.raises(KeyboardInterrupt),
    ):
        worker.ceiling(Protocol(2))


class Wrapped(Exception):
    """As torch.compile wraps the error of a backend."""

    inner_exception = ValueError("first line\nsecond line")


@pytest.mark.parametrize(
    ("error", "outcome", "why"),
    [
        (MeasureError("off by 2"), "inaccurate", "off by 2"),
        (MemoryError("all of it"), "oom", "all of it"),
        (RuntimeError("CUDA out of memory"), "oom", "RuntimeError: CUDA out of memory"),
        (ValueError("no such form"), "compile_error", "ValueError: no such form"),
        (Wrapped("outer"), "compile_error", "ValueError: first line"),
    ],
)
def test_an_error_becomes_an_outcome_with_one_line(error, outcome, why):
    found = failure(error)
    assert (found.outcome, found.why) == (outcome, why)


def test_a_worker_that_is_killed_is_replaced_and_asked_again(monkeypatch):
    worker, killed = Worker(TINY), Failure("killed", "SIGKILL")
    replies = [killed, killed, Times([[1.0]], [""])]
    monkeypatch.setattr(worker, "_ask_once", lambda request: replies.pop(0))
    assert worker.measure([None], Protocol(1)).outcome == "ok" and replies == []
    replies = [killed] * 9
    assert worker.measure([None], Protocol(1)) is killed and len(replies) == 9 - ATTEMPTS


def test_the_end_of_a_process_says_how_it_ended(monkeypatch):
    class Dead:
        pid, exitcode = None, -9

        def is_alive(self):
            return False

        def join(self, _):
            pass

    class Broken:
        def send(self, _):
            raise BrokenPipeError

        def close(self):
            pass

    worker = Worker(TINY)
    monkeypatch.setattr(worker, "_running", lambda: (Dead(), Broken()))
    assert worker._ask_once(None).outcome == "killed"
    Dead.exitcode = -11
    assert worker._ask_once(None) == Failure("crashed", "the worker ended with exit code -11")


@pytest.mark.parametrize("at", ["recv", "send"])
def test_a_worker_whose_coordinator_is_gone_ends_quietly(at, monkeypatch):
    class Pipe:
        def recv(self):
            if at == "recv":
                raise EOFError
            return CeilingRequest(Protocol(1))

        def send(self, reply):
            assert reply.outcome == "compile_error" and "SystemExit" in reply.why
            raise BrokenPipeError

    def leaves(*_):
        raise SystemExit(0)

    monkeypatch.setattr(module, "_bench", leaves)
    monkeypatch.setattr(module.os, "setpgid", lambda *_: None)
    assert module._serve(Pipe(), TINY, None, 1) is None
