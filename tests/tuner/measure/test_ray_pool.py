"""Workers on a Ray cluster of four nodes, the first of which has no processor to lend."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from tuning import TINY

from attnpass.errors import MeasureError, MissingDependencyError
from attnpass.store import Store
from attnpass.tuner.measure import (
    CompileSettings,
    Failure,
    Lost,
    PackedRequest,
    Pool,
    Protocol,
    Setup,
    choose_class,
    class_of,
    described,
    identity,
    ray_pool,
    ray_workers,
)

TWICE = PackedRequest.of([None, None], Protocol(2))

TASK = """
import os
import time

import torch
from attnpass import Task
from attnpass.tuner.digits import DigitsViT, correct


def task():
    time.sleep(float(os.environ.get("SLOW", "0")))
    torch.manual_seed(0)
    model, images = DigitsViT(dim=16, depth=1, heads=2).eval(), torch.zeros(2, 1, 32, 32)
    target = torch.zeros(2, dtype=torch.long)
    return Task("sent", model, (images,), [(images,)], [((images,), target)], correct)
"""


def setup_of(task: str, folder: Path) -> Setup:
    with Store(folder / "a.db") as store:
        return Setup.of(task, CompileSettings("eager"), 240.0, "cpu", store)


def test_without_ray_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingDependencyError, match=r"pip install 'attnpass\[ray\]'"),
        ray_workers("auto", setup_of(TINY, tmp_path), print),
    ):
        pass


def test_the_end_of_an_actor_is_a_loss_and_its_error_a_failure():
    from ray.exceptions import (
        ActorDiedError,
        ActorUnavailableError,
        ActorUnschedulableError,
        RayTaskError,
    )

    def answered(error=None, reply=None):
        future = Future()
        future.set_result(reply) if error is None else future.set_exception(error)
        return ray_pool._answer(future)

    assert answered(reply=Failure("oom", "x")) == Failure("oom", "x")
    assert isinstance(answered(ActorDiedError()), Lost)
    assert "not there" in answered(ActorUnavailableError("not there", None)).why
    assert isinstance(answered(ActorUnschedulableError("no node")), Lost)
    raised = RayTaskError("answer", "traceback", ValueError("first\nsecond"))
    assert answered(raised.as_instanceof_cause()) == Failure("compile_error", "first")


@contextmanager
def cluster():
    """Three nodes of one processor, one of them slow, one with AVX2 alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [
            made.add_node(num_cpus=1, wait=False, env_vars=env)
            for env in ({}, {"SLOW": "25"}, {"ATEN_CPU_CAPABILITY": "avx2"})
        ]
        made.wait_for_nodes()
        try:
            yield made, nodes
        finally:
            made.shutdown()


def job():
    return (yield TWICE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_measures_whatever_becomes_of_its_nodes(tmp_path):
    """One worker is killed, then its node is gone; one is slow; one has other instructions."""
    (tmp_path / "sent.py").write_text(TASK)
    setup, said = setup_of(f"{tmp_path}/sent.py:task", tmp_path), []
    (tmp_path / "sent.py").unlink()
    import ray

    with cluster() as (made, nodes), ray_workers(made.address, setup, said.append) as workers:
        assert len(workers) == 3 and said == []
        classes = [class_of(w.device) for w in workers]
        chosen = choose_class([w.device for w in workers], identity("cpu"))
        assert sorted(map(classes.count, set(classes))) == [1, 2]
        used = [w for w in workers if class_of(w.device) == chosen]
        (other,) = [w for w in workers if w not in used]
        assert "AVX2" in described(other.device) and "AVX512" not in described(other.device)
        quick = next(w for w in used if w._node == nodes[0].node_id)
        pool = Pool(used, timeout=240, say=said.append)

        # the worker's process is killed while it measures
        killed = ray.get(quick.actor.__ray_call__.remote(lambda _: os.getpid()))
        began = time.monotonic()
        threading.Timer(2.0, os.kill, (killed, signal.SIGKILL)).start()
        replies = dict(pool.gather({i: job() for i in range(4)}))
        assert sorted(replies) == [0, 1, 2, 3]
        assert {r.outcome for r in replies.values()} == {"ok"}
        assert pool.counts["lost"] == 1 and pool.counts["sent"] >= 5
        print(f"{time.monotonic() - began:.1f} s", dict(pool.counts))

        # its node is gone: the slow one is left, whether or not the loss is known yet
        made.remove_node(nodes[0], allow_graceful=False)
        replies = dict(pool.gather({i: job() for i in range(6)}))
        assert {r.outcome for r in replies.values()} == {"ok"}
        pool.close()


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    with (
        pytest.raises(MeasureError, match="at 127.0.0.1:1, got .*refused; ray start --head"),
        ray_workers("127.0.0.1:1", setup_of(TINY, tmp_path), print),
    ):
        pass
