"""A pool's workers on this machine: one process per device."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from attnpass.errors import OptionError
from attnpass.tuner.measure.device_class import identity
from attnpass.tuner.measure.exchange import Failure, Reply
from attnpass.tuner.measure.packing import PackedRequest
from attnpass.tuner.measure.pool_worker import Answer
from attnpass.tuner.measure.worker import Worker


class LocalWorker:
    """A worker of a pool that is a process of this machine; a thread waits for it.

    Args:
        name: of the device, ``cpu`` or ``cuda:NUMBER``. worker: not started yet.
    """

    def __init__(self, name: str, worker: Worker) -> None:
        kind, _, index = name.partition(":")
        self.name, self.worker, self.closing = name, worker, False
        self.device: Mapping[str, Any] = identity(kind, int(index or 0))
        worker.stopped = lambda: self.closing
        self._thread = ThreadPoolExecutor(1, f"attnpass {name}")

    def send(self, request: PackedRequest, done: Callable[[Answer], None]) -> None:
        """Begin to measure; ``done`` gets the reply, from another thread."""
        asked = self._thread.submit(self._ask, request)
        asked.add_done_callback(lambda future: done(future.result()))

    def _ask(self, request: PackedRequest) -> Reply:
        try:
            return request.asked_of(self.worker)
        except KeyboardInterrupt:
            return Failure("killed", "the run was stopped")

    def restart(self) -> None:
        """Nothing to do: the handle starts its process anew where that ended or hangs."""

    def close(self) -> None:
        """End the process, and every process that it started."""
        self.closing = True
        self._thread.shutdown()
        self.worker.close()


def local_devices(text: str, kind: str) -> list[str]:
    """The devices that are named, separated by commas, e.g. ``cuda:0,cuda:1`` or ``cpu``.

    Raises:
        OptionError: one is named twice, is not there, or is not of the task's ``kind``.
    """
    names = [name.strip() for name in text.split(",")]
    there = ["cpu"] if kind == "cpu" else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names = ["cuda:0" if name == "cuda" else name for name in names]
    wrong = [name for name in names if name not in there]
    if wrong:
        raise OptionError(
            f"expected devices of {', '.join(there) or 'none'}, on which the task runs, got"
            f" {', '.join(wrong)}"
        )
    if len(set(names)) < len(names):
        raise OptionError(
            f"expected each device once, got {text}: two processes on one would disturb each other"
        )
    return names


def visible(name: str) -> str:
    """The value of CUDA_VISIBLE_DEVICES that shows this device alone; empty for the CPU."""
    found = re.fullmatch(r"cuda:(\d+)", name)
    if found is None:
        return ""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return listed.split(",")[int(found[1])] if listed else found[1]


def local_workers(names: Sequence[str], make: Callable[[str], Worker]) -> list[LocalWorker]:
    """One worker per device; ``make`` gets what CUDA_VISIBLE_DEVICES is to be in its process."""
    return [LocalWorker(name, make(visible(name))) for name in names]
