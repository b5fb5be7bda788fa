"""Questions to a finished run that measure nothing: other limits, why a choice, what differs.

A plan whose held-out items are known is *proven* or not under any limit, since its bound does not
depend on the limit. All other plans were judged on the selection alone: under another limit they
are *likely*, and the same command with that limit judges them from the stored measurements.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnpass.errors import OptionError
from attnpass.tuner.search.integer_program import front
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.plan_row import PlanRow
from attnpass.tuner.search.result import RunResult
from attnpass.tuner.search.settings import REJECTED


@dataclass(frozen=True)
class Solution:
    """What a run knows about other limits.

    Attributes:
        proven: plans that held-out items prove to keep them, fastest first. likely: plans that
            keep them on the selection, or are only estimated, fastest first.
        predicted: assignments of the integer program that nobody scored, with their milliseconds.
        base_ms: the baseline's latency.
    """

    proven: Sequence[PlanRow]
    likely: Sequence[PlanRow]
    predicted: Sequence[tuple[Mapping[str, str], float]]
    base_ms: float

    def as_dict(self) -> dict[str, Any]:
        """The solution as plain JSON types."""
        return {
            "proven": [x.as_dict() for x in self.proven],
            "likely": [x.as_dict() for x in self.likely],
            "predicted": [{"forms": dict(f), "estimate_ms": ms} for f, ms in self.predicted],
            "baseline_ms": self.base_ms,
        }


def solve(
    result: RunResult,
    *,
    max_drop: float | None = None,
    max_ms: float = 0.0,
    max_memory_mb: float = 0.0,
) -> Solution:
    """The plans of a run under other limits; 0 is none.

    Raises:
        OptionError: the run ended before it knew any plan.
    """
    base = result.facts.baseline_ms
    if base is None:
        raise OptionError(f"expected a run with latencies, got {result.run}, which ended before")
    limit = result.max_drop if max_drop is None else max_drop
    judged = {r.plan: r for r in (*result.front, *result.slower) if r.held_out is not None}

    def fits(row: PlanRow) -> bool:
        ms = row.estimate_ms if row.latency is None else row.latency.ms
        peak = None if row.latency is None else row.latency.peak_mib
        small = not max_memory_mb or (peak is not None and peak <= max_memory_mb)
        return (not max_ms or ms <= max_ms) and small

    proven = [
        r for r in result.front if fits(r) and r.held_out is not None and r.held_out.upper <= limit
    ]
    likely = [
        r
        for r in (*result.scored, *result.nearest)
        if r.plan not in judged
        and r.selection is not None
        and r.selection.upper <= limit
        and r.estimate_ms < base
        and fits(r)
    ]
    likely = list({r.plan: r for r in sorted(likely, key=lambda r: r.estimate_ms)}.values())
    known = {json.dumps(dict(r.forms), sort_keys=True) for r in (*result.scored, *judged.values())}
    predicted = [
        (forms, ms)
        for forms, ms in _predicted(result, base)
        if (not max_ms or ms <= max_ms) and json.dumps(forms, sort_keys=True) not in known
    ]
    return Solution(proven, likely, predicted, base)


def _predicted(result: RunResult, base: float) -> Iterator[tuple[dict[str, str], float]]:
    """The integer program's front from the run's damages and savings, fastest last."""
    saved = result.facts.saving_ms_per_site or {}
    damage = {
        site: {c: x for c, x in row.items() if c == "softmax" or c in saved}
        for site, row in result.sensitivity.items()
    }
    saving = {site: {c: saved.get(c, 0.0) for c in row} for site, row in damage.items()}
    if not any(len(row) > 1 for row in damage.values()):
        return
    for plan in front(damage, saving):
        forms = dict(plan)
        yield forms, base - sum(saving[site][c] for site, c in forms.items())


@dataclass(frozen=True)
class Verdict:
    """One choice at one site: what it would cost and save, and why it was taken or not.

    Attributes:
        choice: its name. damage: how far it alone moves the outputs, None where not measured.
        saved_ms: milliseconds it saves there. fit: error left by calibration. used: in how many
            plans of the front. why: the reason in words.
    """

    choice: str
    damage: float | None
    saved_ms: float | None
    fit: float | None
    used: int
    why: str

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON types."""
        return dict(vars(self))


def explain_choice(result: RunResult, site: str) -> list[Verdict]:
    """Every choice of a run at one site, in the order of the run's menu.

    Raises:
        OptionError: the run has no such site.
    """
    known = {x["name"]: x for x in result.sites}
    if site not in known:
        raise OptionError(f"expected a site of {', '.join(known)}, got {site!r}")
    best = result.best_row
    taken = best.forms.get(site, "softmax") if best is not None else "softmax"
    menu = list(dict.fromkeys(("softmax", *result.settings.get("forms", ()))))
    return [_verdict(result, known[site], choice, taken) for choice in menu]


def _verdict(result: RunResult, site: Mapping[str, Any], choice: str, taken: str) -> Verdict:
    """The verdict on one choice at a site where another one is ``taken``."""
    name, facts = site["name"], result.facts
    row = result.sensitivity.get(name, {})
    damage, saved = row.get(choice), (facts.saving_ms_per_site or {}).get(choice)
    fit = result.fit.get(choice, {}).get(name)
    used = sum(r.forms.get(name) == choice for r in result.front)
    found = Verdict(choice, damage, 0.0 if choice == "softmax" else saved, fit, used, "")
    no = site["legal"].get(form_of(choice)[0])
    ratio = (facts.form_ratios or {}).get(choice)
    if choice == taken:
        why = "taken by the best plan" if result.best else "nothing is converted"
    elif choice == "softmax":
        why = "the best plan converts this site"
    elif no is not None:
        why = f"not legal: {no['code']}: {no.get('hint', '')}".rstrip(": ")
    elif saved is None:
        why = "not timed: the ceiling leaves nothing to gain, or timing it failed"
    elif damage is None and facts.was_cut(choice):
        why = "not judged: the time was over"
    elif saved <= 0 or damage is None:
        told = "" if ratio is None else f" ({ratio} at every legal site)"
        why = f"no gain{told}"
    elif damage >= REJECTED:
        why = "the outputs are not finite"
    else:
        why = _dearer(row, facts.saving_ms_per_site or {}, choice, taken)
        if choice in (facts.undecided or ()):
            why += "; noise hides its gain"
    return Verdict(**{**found.as_dict(), "why": why})


def _dearer(
    damage: Mapping[str, float], saved: Mapping[str, float], choice: str, taken: str
) -> str:
    """Why a choice that saves time lost against the one that is taken."""
    mine, theirs = damage[choice], damage.get(taken, 0.0)
    gain, other = saved[choice], saved.get(taken, 0.0)
    if taken == "softmax":
        return f"saves {gain:.3g} ms at a damage of {mine:.2g}, which no proven plan could afford"
    if gain <= other and mine >= theirs:
        return f"{taken} saves more ({other:.3g} against {gain:.3g} ms) and damages less"
    return (
        f"saves {gain:.3g} ms at a damage of {mine:.2g}; {taken} saves {other:.3g} ms"
        f" at {theirs:.2g}"
    )


def differences(a: RunResult, b: RunResult) -> dict[str, Any]:
    """What two runs have otherwise: settings, facts, and the best plan per site."""
    mine, theirs = a.as_dict(), b.as_dict()
    out: dict[str, Any] = {}
    for part in ("settings", "device", "versions", "facts"):
        names = sorted({*mine[part], *theirs[part]})
        pairs = {n: [mine[part].get(n), theirs[part].get(n)] for n in names}
        out[part] = {n: pair for n, pair in pairs.items() if _plain(pair[0]) != _plain(pair[1])}
    forms = [{} if x.best_row is None else dict(x.best_row.forms) for x in (a, b)]
    sites = dict.fromkeys((*forms[0], *forms[1]))
    pairs = {s: [f.get(s, "softmax") for f in forms] for s in sites}
    out["best"] = [a.best, b.best]
    out["forms"] = {s: pair for s, pair in pairs.items() if pair[0] != pair[1]}
    return out


def _plain(value: Any) -> Any:
    """A value as JSON has it: tuples and lists are the same."""
    return json.loads(json.dumps(value, default=str))
