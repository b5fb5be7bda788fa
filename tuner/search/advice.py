"""Why a run has no proven plan, in words: what limits, and what could change it."""

from __future__ import annotations

import math
from collections import Counter

from attnpass.tuner.measure import Conditions
from attnpass.tuner.search.budget import minutes
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.result import LOSSLESS, Facts, RunResult

STEPS, CALLS = 300, 4
"""Training steps that bring most plans back, and how many calls of the model each is worth."""

LEAST_RECOVERY_S = 300.0
"""Seconds of recovery below which nothing is advised."""

SMALL_SHARE = 0.25
"""Below this share of the time, attention is little to gain from."""


def advise(result: RunResult) -> list[str]:
    """One sentence for each limit and each next step; none where a plan is proven.

    Also none where the run ended before latencies were taken.
    """
    if result.best is not None or result.facts.ceiling_ratio is None:
        return []
    return [*limits(result), *next_steps(result)]


def limits(result: RunResult) -> list[str]:
    """What stands in the way of a proven plan: noise, the ceiling, legality, speed, accuracy."""
    facts, out = result.facts, []
    if facts.reliable is False:
        under = Conditions.from_dict(facts.conditions)
        out.append(
            f"noise: two identical runs differed by up to {facts.floor or 0:.0%}"
            + ("" if under is None else f" ({under})")
        )
    share = facts.attention_share or 0.0
    which = "the lossless plan" if facts.baseline == LOSSLESS else "the compiled model"
    out.append(
        f"ceiling: attention is {share:.0%} of the time of {which}; no plan that keeps the"
        f" projections gains more over it than {facts.ceiling_ratio}"
    )
    out += _illegal(result)
    out += _slow(facts)
    if result.slower:
        row = result.slower[0]
        told = "" if row.latency is None else f" (the fastest: {row.latency.ratio})"
        out.append(f"speed: {len(result.slower)} plans were not faster than the noise{told}")
    for row in [*result.front, *result.nearest][:1]:
        judged = row.held_out or row.selection
        if judged is not None:
            part = "held-out" if row.held_out else "selection"
            out.append(
                f"accuracy: the fastest plan drops {judged.drop:.2%}, at most {judged.upper:.2%}"
                f" on {judged.items:.0f} {part} items, where {result.max_drop:.2%} are allowed"
            )
    if facts.cut:
        out.append(f"time: {'; '.join(facts.cut)}")
    return out


def _illegal(result: RunResult) -> list[str]:
    """The choices that are not legal somewhere, and why."""
    out = []
    for form in dict.fromkeys(form_of(c)[0] for c in result.settings.get("forms", ())):
        why = Counter(
            no["code"] for site in result.sites if (no := site["legal"].get(form)) is not None
        )
        if why:
            told = ", ".join(code for code, _ in why.most_common())
            out.append(
                f"legality: {form} at {why.total()} of {len(result.sites)} sites ({told};"
                " `attnpass sites` says where)"
            )
    return out


def _slow(facts: Facts) -> list[str]:
    """The choices that make nothing faster, and those of which noise hides it."""
    out, hidden = [], facts.undecided or ()
    ratios = facts.form_ratios or {}
    slow = [c for c, r in ratios.items() if c not in hidden and r.median <= 1]
    for what, names in (("speed: no gain from", slow), ("noise hides the gain of", hidden)):
        if names:
            out.append(f"{what} " + ", ".join(f"{c} {ratios[c]}" for c in names))
    return out


def _more_items(result: RunResult) -> list[str]:
    """How many items would prove a plan that seems to keep the limit."""
    for row in [*result.front, *result.nearest]:
        judged = row.held_out or row.selection
        if judged is not None and judged.drop < result.max_drop < judged.upper:
            # the distance of a bound from the drop shrinks by the root of the items
            wide, allowed = judged.upper - judged.drop, result.max_drop - judged.drop
            items = math.ceil(judged.items * (wide / allowed) ** 2)
            return [f"try: about {items} held-out items would prove {result.max_drop:.2%}"]
    return []


def next_steps(result: RunResult) -> list[str]:
    """What could change the answer."""
    facts, out = result.facts, []
    if facts.baseline == LOSSLESS:
        out.append('try: torch.compile(model, backend="attnpass") without options is that gain')
    if facts.reliable is False or facts.undecided:
        out.append("try: close other programs, or OMP_NUM_THREADS=1, and the same command again")
    if facts.cut:
        out.append("try: a larger --budget; the same command goes on from what is measured")
    if (facts.attention_share or 0.0) < SMALL_SHARE:
        out.append(
            "try: longer sequences, larger images or a larger batch, where attention takes more of"
            " the time"
        )
    if (result.front or result.nearest) and result.settings.get("recover") != "distil":
        spent = max(LEAST_RECOVERY_S, STEPS * CALLS * (facts.baseline_ms or 0.0) / 1e3)
        out.append(
            f"try: --recover distil --recover-budget {spent / 60:.0f}m, which trains what was"
            f" converted (about {minutes(spent)} for {STEPS} steps)"
        )
    out += _more_items(result)
    if facts.provable and facts.held_out and facts.provable > facts.held_out:
        out.append(
            f"try: {facts.provable} held-out items or more prove a drop within"
            f" {result.max_drop:.2%}; there are {facts.held_out}"
        )
    if facts.baseline != LOSSLESS:
        out.append("try: bfloat16, where our kernels gain most over torch's")
    return out
