"""A pool's workers on a Ray cluster: one actor per node, or per GPU."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from attnpass.errors import MeasureError, MissingDependencyError
from attnpass.text import one_line
from attnpass.tuner.measure.exchange import Failure, Reply
from attnpass.tuner.measure.host import Host, Setup
from attnpass.tuner.measure.packing import PackedRequest
from attnpass.tuner.measure.pool_worker import Answer, Lost

READY = 120.0
"""Seconds that the workers have to start."""


class RayWorker:
    """A worker of a pool that is an actor of a node.

    Args:
        name: shown. node: id of the node. cpus, gpus: that the actor takes there.
    """

    def __init__(self, name: str, node: str, cpus: float, gpus: int, setup: Setup) -> None:
        self.name = name
        self.device: Mapping[str, Any] = {}
        self._setup = replace(setup, threads=max(1, min(setup.threads, int(cpus))))
        self._needs = {"num_cpus": cpus, "num_gpus": gpus}
        self._node = node
        self._start()

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(self._node, soft=False)
        # beside the request that runs, one that ends it
        options = {**self._needs, "scheduling_strategy": place, "max_concurrency": 2}
        self.actor: Any = ray.remote(Host).options(**options).remote(self._setup)

    def send(self, request: PackedRequest, done: Callable[[Answer], None]) -> None:
        """Begin to measure; ``done`` gets the answer, from another thread."""
        future = self.actor.answer.remote(request).future()
        future.add_done_callback(lambda found: done(_answer(found)))

    def restart(self) -> None:
        """Another actor on the same node."""
        self._kill()
        self._start()

    def close(self) -> None:
        """End the actor, and every process that it started."""
        import ray

        with suppress(Exception):  # it is gone
            ray.get(self.actor.close.remote(), timeout=5)
        self._kill()

    def _kill(self) -> None:
        import ray

        with suppress(Exception):  # it is gone
            ray.kill(self.actor)


def _answer(found: Future[Reply]) -> Answer:
    """The reply of an actor, or why it gives none."""
    from ray.exceptions import RayTaskError

    error = found.exception()
    if error is None:
        return found.result()
    why = _reason(error)
    return Failure("compile_error", why) if isinstance(error, RayTaskError) else Lost(why)


def _reason(error: BaseException) -> str:
    """An error of Ray in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [x for x in str(cause).splitlines() if x.strip()] or [type(cause).__name__]
    return one_line(lines[0])[:300]


@contextmanager
def ray_workers(
    address: str, setup: Setup, say: Callable[[str], None]
) -> Iterator[list[RayWorker]]:
    """The workers of a cluster that are ready; ``auto`` is the running one, ``local`` a new one.

    Raises:
        MissingDependencyError: ray is not installed. MeasureError: no cluster, or no worker.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "expected the package ray, found none: pip install 'attnpass[ray]'"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        _connect(address)
    workers = list[RayWorker]()
    try:
        for node in ray.nodes():
            workers += _on_node(node, setup) if node["Alive"] else []
        yield _ready(workers, say)
    finally:
        for worker in workers:
            worker._kill()
        if ours:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        # ray itself waits for minutes, deaf to Ctrl-C, where nobody listens
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        # what workers print would be among the answers on stdout
        more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, log_to_driver=False, configure_logging=False, **more)
    except Exception as error:
        raise MeasureError(
            f"expected a Ray cluster at {address}, got {_reason(error)};"
            " ray start --head starts one, --ray local takes none"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_node(node: Mapping[str, Any], setup: Setup) -> list[RayWorker]:
    """One worker for the processors of a node, or one per GPU."""
    has, name = node["Resources"], f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"
    cpus, gpu = has.get("CPU", 0.0), int(setup.kind == "cuda")
    count = int(has.get("GPU", 0)) if gpu else int(cpus >= 1)
    share = cpus // max(count, 1)
    return [
        RayWorker(f"{name}:{i}" if count > 1 else name, node["NodeID"], share, gpu, setup)
        for i in range(count)
    ]


def _ready(workers: list[RayWorker], say: Callable[[str], None]) -> list[RayWorker]:
    """The workers that say on which device they are, in time."""
    import ray

    if not workers:
        raise MeasureError("expected a Ray node with what the task runs on, found none")
    asked = {w.actor.device.remote(): w for w in workers}
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=READY)
    ready, why = list[RayWorker](), list[str]()
    for ref in done:
        worker = asked[ref]
        try:
            worker.device = ray.get(ref)
            ready.append(worker)
        except Exception as error:
            why.append(f"{worker.name}: {_reason(error)}")
    why += [f"{asked[ref].name}: busy, or not started within {READY:.0f} s" for ref in late]
    if not ready:
        raise MeasureError(f"expected a Ray worker that is ready, got none: {why[-1]}")
    for text in why:
        say(f"worker left out: {text}")
    return ready
