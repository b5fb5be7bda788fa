"""The messages between the coordinator and the worker process: plain records that pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class CompileSettings:
    """How the worker compiles: the inner compiler, its mode, and the database with the tiles.

    ``weights`` is the digest of the coordinator's model, which the worker's must have; empty: any.
    """

    inner: str = "inductor"
    mode: str | None = None
    db: str | None = None
    weights: str = ""


@dataclass(frozen=True)
class Protocol:
    """How times are taken.

    Attributes:
        rounds: of interleaved runs. threads: of torch, 0 as the coordinator has them.
        pinned: whether the worker is kept on one processor.
    """

    rounds: int
    threads: int = 0
    pinned: bool = False


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
        times: milliseconds, one row per run, one column per round.
        hashes: of the plans that ran, ``""`` for the unchanged model; none for a ceiling.
        conditions: ``Conditions`` under which they were taken, as JSON.
    """

    times: list[list[float]]
    hashes: list[str]
    conditions: dict[str, Any] = field(default_factory=dict)
    outcome: ClassVar[str] = "ok"

    def as_dict(self) -> dict[str, Any]:
        """The fields as the database stores them."""
        return {"times": self.times, "hashes": self.hashes, "conditions": self.conditions}


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
