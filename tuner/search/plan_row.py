"""One plan as a result shows it: its forms, accuracy, latency, and how it was recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from attnpass.tuner.measure import Bound, Ratio

Json = Mapping[str, Any]
"""A JSON object that is stored and shown as it stands."""

R = TypeVar("R", Bound, Ratio)


@dataclass(frozen=True)
class PlanLatency:
    """A finalist's latency, interleaved with the baseline's.

    Attributes:
        ms: its median. ratio: the model as it is over the plan, above 1 where the plan is faster.
        over_lossless: the lossless plan over this one, where that is a gain itself.
        p95_ms: the time that 95 % of the calls do not exceed. peak_mib: MiB that a call takes at
            most beyond what was held before, None where that is not known. shapes_ms: the median
            per example of the task.
    """

    ms: float
    ratio: Ratio
    over_lossless: Ratio | None = None
    p95_ms: float | None = None
    peak_mib: float | None = None
    shapes_ms: Sequence[float] = ()

    @property
    def least(self) -> float:
        """The lower end of the speed-up over the faster of both."""
        low = self.ratio.low
        return low if self.over_lossless is None else min(low, self.over_lossless.low)


@dataclass(frozen=True)
class Recovery:
    """What global distillation did to a plan.

    Attributes:
        drop_before: its drop on the selection before. steps, seconds: of all its stages together.
        stage: the other numbers of its last stage, and the hash of the plan that came out.
    """

    drop_before: float
    steps: int
    seconds: float
    stage: Json = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        own = {"steps": self.steps, "seconds": self.seconds, "drop_before": self.drop_before}
        return {**self.stage, **own}

    @classmethod
    def from_dict(cls, value: Json) -> Recovery:
        """The record of plain JSON types."""
        own = ("steps", "seconds", "drop_before")
        stage = {k: v for k, v in value.items() if k not in own}
        drop, steps, seconds = (value.get(k, 0) for k in ("drop_before", "steps", "seconds"))
        return cls(drop, steps, seconds, stage)


@dataclass(frozen=True)
class PlanRow:
    """One plan of the front, or one of the nearest.

    Attributes:
        plan: its hash. forms: choice per site, in the model's order.
        estimate_ms: the latency that the search assumed.
        selection, held_out: bounds on its drop. divergence: how far it moves the outputs.
        latency: measured, of finalists. recovery: of plans that were distilled globally.
        others: bounds by each of ``Task.metrics``, on held-out items where ``held_out`` is there.
    """

    plan: str
    forms: Mapping[str, str]
    estimate_ms: float
    selection: Bound | None = None
    held_out: Bound | None = None
    divergence: float | None = None
    latency: PlanLatency | None = None
    recovery: Recovery | None = None
    others: Mapping[str, Bound] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        return {
            "plan": self.plan,
            "forms": dict(self.forms),
            "estimate_ms": self.estimate_ms,
            "selection": self.selection.as_dict() if self.selection else None,
            "held_out": self.held_out.as_dict() if self.held_out else None,
            "latency": self.latency_dict(),
            "recovery": self.recovery.as_dict() if self.recovery else {},
        } | self._others_dict()

    def _others_dict(self) -> dict[str, Any]:
        """The bounds by other metrics, no key where there are none."""
        rows = {m: x.as_dict() for m, x in self.others.items()}
        return {"others": rows} if rows else {}

    def latency_dict(self) -> dict[str, Any]:
        """Milliseconds and ratio; the divergence stands beside them, as it always has."""
        out: dict[str, Any] = {}
        if self.divergence is not None:
            out["divergence"] = self.divergence
        if self.latency is not None:
            out |= {"ms": self.latency.ms, "ratio": self.latency.ratio.as_dict()}
            if self.latency.over_lossless is not None:
                out["over_lossless"] = self.latency.over_lossless.as_dict()
            more = {"p95_ms": self.latency.p95_ms, "peak_mib": self.latency.peak_mib}
            out |= {k: v for k, v in more.items() if v is not None}
            if len(self.latency.shapes_ms) > 1:
                out["shapes_ms"] = list(self.latency.shapes_ms)
        return out

    @classmethod
    def from_dict(cls, value: Json) -> PlanRow:
        """The row of plain JSON types."""
        stored: Json = value.get("latency") or {}
        ratio, lossless = (record(Ratio, stored.get(n)) for n in ("ratio", "over_lossless"))
        recovery, others = value.get("recovery"), value.get("others") or {}
        return cls(
            plan=value["plan"],
            forms=value.get("forms", {}),
            estimate_ms=value.get("estimate_ms", float("nan")),
            selection=record(Bound, value.get("selection")),
            held_out=record(Bound, value.get("held_out")),
            divergence=stored.get("divergence"),
            latency=PlanLatency(
                *(stored["ms"], ratio, lossless),
                *(stored.get("p95_ms"), stored.get("peak_mib"), stored.get("shapes_ms", ())),
            )
            if ratio and "ms" in stored
            else None,
            recovery=Recovery.from_dict(recovery) if recovery else None,
            others={m: x for m, row in others.items() if (x := record(Bound, row)) is not None},
        )


def record(cls: type[R], value: Json | None) -> R | None:
    """The record of plain JSON types, None where a field is missing."""
    names = [f.name for f in fields(cls)]
    if not value or any(name not in value for name in names):
        return None
    return cls(**{name: value[name] for name in names})
