"""The messages between the coordinator and the worker process: plain records that pickle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar


@dataclass(frozen=True)
class CompileSettings:
    """How the worker compiles: the inner compiler, its mode, and the database with the tiles.

    ``weights`` is the digest of the coordinator's model, which the worker's must have; empty: any.
    ``objective``: ``inference``, or ``train`` for a call with its backward.
    ``visible`` is CUDA_VISIBLE_DEVICES in the worker; empty: as the coordinator has it.
    """

    inner: str = "inductor"
    mode: str | None = None
    db: str | None = None
    weights: str = ""
    objective: str = "inference"
    visible: str = ""


@dataclass(frozen=True)
class Protocol:
    """How times are taken.

    Attributes:
        rounds: of interleaved runs. threads: of torch, 0 as the coordinator has them.
        pinned: whether the worker is kept on one processor.
        memory: whether the peak memory of a call is measured, too, once for each run.
        items: of each call, 0 for all of the batch as it is served.
    """

    rounds: int
    threads: int = 0
    pinned: bool = False
    memory: bool = False
    items: int = 0


@dataclass(frozen=True)
class PlansRequest:
    """Asks for interleaved times of the model under plan files; None is the unchanged model."""

    plans: tuple[str | None, ...]
    protocol: Protocol


@dataclass(frozen=True)
class CeilingRequest:
    """Asks for the five series of ``Worker.ceiling``."""

    protocol: Protocol


Request = PlansRequest | CeilingRequest


@dataclass(frozen=True)
class Times:
    """Interleaved times.

    Attributes:
        times: milliseconds, one row per run, one column per round; of a task with several
            examples their weighted mean.
        hashes: of the plans that ran, ``""`` for the unchanged model; none for a ceiling.
        conditions: ``Conditions`` under which they were taken, as JSON.
        shapes: median milliseconds, one row per run, one column per example of the task.
        peaks: MiB that a call takes at most beyond what was held before, one per run; empty where
            that was not asked for, or cannot be known.
    """

    times: list[list[float]]
    hashes: list[str]
    conditions: dict[str, Any] = field(default_factory=dict)
    shapes: list[list[float]] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    outcome: ClassVar[str] = "ok"

    def as_dict(self) -> dict[str, Any]:
        """The fields as the database stores them."""
        return dict(vars(self))

    def only(self, *which: int) -> Times:
        """The times of some of the runs."""
        return replace(
            self,
            times=[self.times[i] for i in which],
            hashes=[self.hashes[i] for i in which] if self.hashes else [],
            shapes=[self.shapes[i] for i in which] if self.shapes else [],
            peaks=[self.peaks[i] for i in which] if self.peaks else [],
        )

    def and_then(self, more: Times) -> Times:
        """These times and those of more rounds of the same runs, under the later conditions."""
        times = [[*a, *b] for a, b in zip(self.times, more.times, strict=True)]
        return replace(more, times=times, peaks=self.peaks or more.peaks)


@dataclass(frozen=True)
class Failure:
    """A measurement that could not be taken.

    Attributes:
        outcome: ``compile_error``, ``inaccurate``, ``oom``, ``timeout``, ``killed`` or
            ``crashed``.
        why: one line. trace: the end of the worker's traceback, where there was one.
    """

    outcome: str
    why: str
    trace: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields as the database stores them, beside the outcome."""
        return {"why": self.why, **({"trace": self.trace} if self.trace else {})}


Reply = Times | Failure
