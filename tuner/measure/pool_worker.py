"""A worker as a pool sees it, its answers, and where they arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from attnpass.tuner.measure.exchange import Reply
from attnpass.tuner.measure.packing import PackedRequest


@dataclass(frozen=True)
class Lost:
    """The worker's process or machine is gone, and the reply with it; ``why`` in one line."""

    why: str


Answer = Reply | Lost


class PoolWorker(Protocol):
    """A worker of a pool.

    Attributes:
        name: shown. device: all that its latencies depend on beside the task.
    """

    name: str
    device: Mapping[str, Any]

    def send(self, request: PackedRequest, done: Callable[[Answer], None]) -> None:
        """Begin to measure; ``done`` gets the answer, from any thread."""

    def restart(self) -> None:
        """End what it does, if anything, and start anew."""

    def close(self) -> None:
        """End it, and every process that it started."""


class Inbox:
    """The answers as they come, and the clock. A simulation has its own."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def put(self, item: object) -> None:
        """Add an item, from any thread."""
        self.queue.put(item)

    def get(self, seconds: float) -> Any:
        """The next item, None where none comes in time."""
        try:
            return self.queue.get(timeout=seconds)
        except Empty:
            return None
