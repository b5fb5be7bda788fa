"""The result of a run: what is stored, printed as JSON and shown.

``as_dict`` gives the JSON that the database holds and ``--json`` prints; ``from_dict`` reads it
back, also where an older version left keys out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from attnpass.tuner.measure import Ratio
from attnpass.tuner.search.plan_row import Json, PlanRow, record

RATIOS = ("softmax_ratio", "bare_ratio", "skip_ratio", "ceiling_ratio")
"""The facts that are one ratio each."""

LOSSLESS = "lossless"
"""The baseline where the model with exact softmax by the kernels is faster than as it is."""


@dataclass(frozen=True)
class DistilledChoice:
    """One choice, distilled locally at every site where it is legal.

    Attributes:
        plan: hash of the stored plan that has it everywhere. losses: per site, relative to its
            output's power. steps, seconds: of the stage, which all choices share.
    """

    plan: str
    losses: Mapping[str, float]
    steps: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {**asdict(self), "losses": dict(self.losses)}


@dataclass(frozen=True)
class Facts:
    """Numbers about the task, the model and the device; None where a stage was not reached.

    Attributes:
        items, selection, held_out: how many validation items there are, and of each part.
        crossed: whether both parts are the whole set, each half judged by the other.
        baseline_score: mean over all items. random: whether two evaluations gave two scores, so
            that no bound holds. provable: items that prove the allowed drop.
        baseline_ms: the compiled baseline. floor: how far two identical runs differ.
        baseline: which of two implementations is the baseline. attention_share: of its time.
        ceiling, ceiling_skipat: speed-ups that no plan can beat.
        softmax_ratio, bare_ratio, skip_ratio: of the compiled model over the three ablations.
        reliable: false where two identical runs differed by too much for a conclusion.
        conditions: of the machine while the baseline was timed. ceiling_ratio: ``ceiling`` with
            its interval. threads: milliseconds and floor of the unchanged model as it is served
            and with one thread.
        saving_ms_per_site: per choice. form_ratios: the baseline over the plan that has a choice
            at every legal site. undecided: choices whose gain noise hides.
        bank: the choices that were distilled.
        finalists_floor: ``floor`` where the finalists were measured.
        cut: what there was no time for.
    """

    items: int | None = None
    selection: int | None = None
    held_out: int | None = None
    crossed: bool | None = None
    baseline_score: float | None = None
    random: bool | None = None
    provable: int | None = None
    baseline_ms: float | None = None
    floor: float | None = None
    baseline: str | None = None
    attention_share: float | None = None
    ceiling: float | None = None
    ceiling_skipat: float | None = None
    softmax_ratio: Ratio | None = None
    bare_ratio: Ratio | None = None
    skip_ratio: Ratio | None = None
    reliable: bool | None = None
    conditions: Mapping[str, Any] | None = None
    ceiling_ratio: Ratio | None = None
    threads: Sequence[Json] | None = None
    saving_ms_per_site: Mapping[str, float] | None = None
    form_ratios: Mapping[str, Ratio] | None = None
    undecided: Sequence[str] | None = None
    bank: Mapping[str, DistilledChoice] | None = None
    finalists_floor: float | None = None
    cut: Sequence[str] | None = None

    def was_cut(self, choice: str) -> bool:
        """Whether there was no time to calibrate a choice, or for its damage at every site."""
        stages = (told.partition(": ") for told in self.cut or ())
        named = [names for stage, _, names in stages if stage in ("calibration", "sensitivity")]
        return any(choice in names.split(", ") for names in named)

    @property
    def noise(self) -> float:
        """The speed-up above 1 that two identical runs may show, where finalists were measured."""
        return next((x for x in (self.finalists_floor, self.floor) if x is not None), 0.0)

    def as_dict(self) -> dict[str, Any]:
        """The facts there are, as plain JSON types."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        out = {k: v for k, v in found.items() if v is not None}
        for name in RATIOS:
            if name in out:
                out[name] = out[name].as_dict()
        if self.form_ratios is not None:
            out["form_ratios"] = {c: r.as_dict() for c, r in self.form_ratios.items()}
        if self.bank is not None:
            out["bank"] = {choice: row.as_dict() for choice, row in self.bank.items()}
        return out

    @classmethod
    def from_dict(cls, value: Json) -> Facts:
        """The facts of plain JSON types; unknown ones are left out."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        for name in RATIOS:
            known[name] = record(Ratio, value.get(name))
        rows = {c: record(Ratio, x) for c, x in (value.get("form_ratios") or {}).items()}
        known["form_ratios"] = {c: x for c, x in rows.items() if x is not None} or None
        bank: Json = value.get("bank") or {}
        known["bank"] = {
            choice: DistilledChoice(
                row.get("plan", ""), row.get("losses", {}), row["steps"], row["seconds"]
            )
            for choice, row in bank.items()
        } or None
        return cls(**known)


@dataclass(frozen=True)
class RunResult:
    """A run from its settings to its best plan.

    Attributes:
        run: its id. status: ``done`` or ``interrupted``. task, metric, settings: what was asked.
        facts, device, versions: where and with what. sites, declined: verdicts of the matcher.
        sensitivity: divergence per site and choice. fit: calibration error per choice and site.
        tried: how many plans were scored. front: the finalists that are faster than the
                baseline beyond the noise and within the limits on time and memory, fastest first.
            slower: the others.
        nearest: where there is no finalist, plans that come nearest to the allowed drop.
        best: hash of the fastest proven plan, None where there is none.
        scored: every plan that was scored on the selection, by its estimate, fastest first.
    """

    run: str
    status: str
    task: str
    created: str
    metric: str
    settings: Json
    facts: Facts
    device: Json
    versions: Json
    sites: Sequence[Json]
    declined: Sequence[Json]
    sensitivity: Mapping[str, Mapping[str, float]]
    fit: Mapping[str, Mapping[str, float]]
    tried: int
    front: Sequence[PlanRow]
    nearest: Sequence[PlanRow]
    best: str | None
    slower: Sequence[PlanRow] = ()
    scored: Sequence[PlanRow] = ()

    @property
    def max_drop(self) -> float:
        """The allowed drop of the mean score."""
        return float(self.settings.get("max_drop", 0.0))

    @property
    def best_row(self) -> PlanRow | None:
        """The row of the best plan, None where there is none."""
        return next((row for row in self.front if row.plan == self.best), None)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        return out | {
            "facts": self.facts.as_dict(),
            "sites": list(self.sites),
            "declined": list(self.declined),
            "front": [row.as_dict() for row in self.front],
            "slower": [row.as_dict() for row in self.slower],
            "nearest": [row.as_dict() for row in self.nearest],
            "scored": [row.as_dict() for row in self.scored],
        }

    @classmethod
    def from_dict(cls, value: Json) -> RunResult:
        """The result of plain JSON types; keys that an older version left out are empty."""
        return cls(
            run=value.get("run", ""),
            status=value.get("status", "done"),
            task=value.get("task", ""),
            created=value.get("created", ""),
            metric=value.get("metric", "score"),
            settings=value.get("settings", {}),
            facts=Facts.from_dict(value.get("facts", {})),
            device=value.get("device", {}),
            versions=value.get("versions", {}),
            sites=value.get("sites", []),
            declined=value.get("declined", []),
            sensitivity=value.get("sensitivity", {}),
            fit=value.get("fit", {}),
            tried=value.get("tried", 0),
            front=[PlanRow.from_dict(row) for row in value.get("front", [])],
            nearest=[PlanRow.from_dict(row) for row in value.get("nearest", [])],
            best=value.get("best"),
            slower=[PlanRow.from_dict(row) for row in value.get("slower", [])],
            scored=[PlanRow.from_dict(row) for row in value.get("scored", [])],
        )
