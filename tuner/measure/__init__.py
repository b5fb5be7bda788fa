"""Accuracy, latency, and the worker process that takes latencies.

``scores`` and ``bound`` say how much accuracy a plan costs at most, ``interleave`` and ``ratio``
how much faster it is than the baseline; ``Worker`` does the latter in a process of its own,
``Pool`` by several workers, here or on a Ray cluster. May import the library, and no other room of
the tuner.
"""

from __future__ import annotations

from attnpass.tuner.measure.accuracy import (
    HELD_OUT,
    Scored,
    Split,
    answer,
    divergence,
    first_tensor,
    mean_move,
    moved,
    pooled_scores,
    scores,
    split,
)
from attnpass.tuner.measure.bounds import Bound, binary, bound, needed
from attnpass.tuner.measure.conditions import Conditions
from attnpass.tuner.measure.device_class import (
    choose_class,
    class_of,
    described,
    differing,
    identity,
)
from attnpass.tuner.measure.exchange import CompileSettings, Failure, Protocol, Reply, Times
from attnpass.tuner.measure.gate import relative
from attnpass.tuner.measure.host import Setup
from attnpass.tuner.measure.latency import (
    LOOK,
    Ratio,
    events,
    floor,
    interleave,
    median_ms,
    percentile_ms,
    ratio,
)
from attnpass.tuner.measure.local_pool import local_devices, local_workers
from attnpass.tuner.measure.packing import PackedPlan, PackedRequest
from attnpass.tuner.measure.pool import Job, Pool
from attnpass.tuner.measure.pool_worker import Inbox, Lost, PoolWorker
from attnpass.tuner.measure.ray_pool import ray_workers
from attnpass.tuner.measure.rejection import Rejection, by_batch, positions
from attnpass.tuner.measure.trial import model_digest, refuse_changed, try_task
from attnpass.tuner.measure.worker import Worker

__all__ = [
    "HELD_OUT",
    "LOOK",
    "Bound",
    "CompileSettings",
    "Conditions",
    "Failure",
    "Inbox",
    "Job",
    "Lost",
    "PackedPlan",
    "PackedRequest",
    "Pool",
    "PoolWorker",
    "Protocol",
    "Ratio",
    "Rejection",
    "Reply",
    "Scored",
    "Setup",
    "Split",
    "Times",
    "Worker",
    "answer",
    "binary",
    "bound",
    "by_batch",
    "choose_class",
    "class_of",
    "described",
    "differing",
    "divergence",
    "events",
    "first_tensor",
    "floor",
    "identity",
    "interleave",
    "mean_move",
    "local_devices",
    "local_workers",
    "median_ms",
    "model_digest",
    "moved",
    "needed",
    "percentile_ms",
    "pooled_scores",
    "positions",
    "ratio",
    "ray_workers",
    "relative",
    "scores",
    "split",
    "refuse_changed",
    "try_task",
]
