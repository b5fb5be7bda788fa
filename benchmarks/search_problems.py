"""The problems of `benchmarks/search.py`, and the truth that a search does not see.

`digits` is the built-in task; then `minilm_512`; and `layers_24` and `layers_96` of
`benchmarks/deep.py`. What the search sees is recorded in committed results: the damage of each
(site, choice) alone, and what each choice saves, the latter as a machine with six competing
processes shows it (`benchmarks/trust.py`). The drops of plans are a model of interaction. Each
(site, choice) has an effect, a power of its damage times a constant; effects add up, and the sum
under another power, saturating, is the drop. Powers and constant are fitted to the few plans whose
drops are recorded; as far as these are off, the effects of every seed are changed at random. So
the damage misleads the search, and the best plan is known exactly, from an integer program. The
search is told the bound that the selection's items give.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from attnpass.tuner.measure import Bound, bound

RESULTS = Path(__file__).parent / "results"
SPREAD = 0.3
"""Least standard deviation of the logarithm of effects."""
SHARED = 0.5
"""Share of the variance of an item's outcome that all plans have in common: assumed."""
WON = 0.35
"""Items won for each one lost, as in the committed runs of the built-in task."""

Plan = Mapping[str, str]


@dataclass(frozen=True)
class Interaction:
    """The model of interaction.

    Attributes:
        steep, power, scale: an effect is ``scale * damage**steep``, the drop
            ``most * (1 - exp(-sum**(1 / power)))``. most: the drop at which it saturates.
        error: mean absolute error of the drops that it was fitted to; ``left_out``: of each
            plan, predicted from the others alone. spread: standard deviation of the logarithm of
            effects. plans: how many it was fitted to.
    """

    steep: float
    power: float
    scale: float
    most: float
    error: float
    left_out: float
    spread: float
    plans: int

    def drop(self, total: float) -> float:
        """The drop of a sum of effects."""
        return float(self.most * (1 - np.exp(-(total ** (1 / self.power)))))

    def total(self, drop: float) -> float:
        """The sum of effects that gives a drop."""
        return float((-np.log1p(-drop / self.most)) ** self.power)


Scored = tuple[list[float], float, int]
"""The damages of a plan's converted sites, its drop, and on how many items."""

SHAPES = [(s, p) for s in (0.5, 0.75, 1.0, 1.25, 1.5) for p in (0.5, 0.75, 1.0, 1.5, 2.0)]
"""Powers that are tried."""


def fitted(plans: list[Scored], most: float, shapes: list[tuple[float, float]]) -> Interaction:
    """The model that comes nearest to the drops of plans."""

    def nearest(known: list[Scored]) -> Interaction:
        found = []
        for steep, power in shapes:
            for scale in np.geomspace(1e-3, 1e3, 241):
                model = Interaction(steep, power, float(scale), most, 0, 0, 0, len(plans))
                off = sum(((guess(model, x) - x[1]) / error(x)) ** 2 for x in known)
                found.append((off, steep, power, model))
        return min(found, key=lambda row: row[:3])[3]

    def guess(model: Interaction, plan: Scored) -> float:
        return model.drop(model.scale * sum(d**model.steep for d in plan[0]))

    def error(plan: Scored) -> float:
        return float(np.sqrt((max(plan[1], 0) + 2 / plan[2]) / plan[2]) + 0.1 * max(plan[1], 0))

    model = nearest(plans)
    out = [abs(guess(nearest([y for y in plans if y is not x]), x) - x[1]) for x in plans]
    near = [abs(guess(model, x) - x[1]) for x in plans]
    # of plans that lose more than chance, and less than all
    ratios = [
        np.log(model.total(x[1]) / model.total(guess(model, x)))
        for x in plans
        if error(x) < x[1] < most / 2
    ]
    return replace(
        model,
        error=statistics.fmean(near),
        left_out=statistics.fmean(out),
        spread=max(SPREAD, float(np.sqrt(np.mean(np.square(ratios))))),
    )


class Draw:
    """A normal number per item, of which a part is the same for all plans: items are hard."""

    def __init__(self, items: int, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.shared = self.draw.standard_normal(items)

    def __call__(self) -> Any:
        """The numbers of another plan."""
        own = self.draw.standard_normal(len(self.shared))
        return SHARED**0.5 * self.shared + (1 - SHARED) ** 0.5 * own


@dataclass(frozen=True)
class Problem:
    """What a search is asked, and the truth.

    Attributes:
        damage: what the run measures of each (site, choice) alone. effects: the model of drops.
        saving: true milliseconds saved per choice and site. base_ms: the baseline.
        items: that select. max_drop: allowed. spread: of per-item differences of scores that are
            not 0 or 1. origin: where the figures are from.
    """

    damage: Mapping[str, Mapping[str, float]]
    effects: Interaction
    saving: Mapping[str, float]
    base_ms: float
    items: int
    max_drop: float
    spread: float | None
    origin: str

    def cost(self, plan: Plan) -> float:
        """True milliseconds."""
        return self.base_ms - sum(self.saving.get(c, 0.0) for c in plan.values())

    def scores(self, drop: float, draw: Draw | None) -> tuple[Tensor, Tensor]:
        """Baseline's and plan's scores of a plan that drops so much; with a ``draw`` of items."""
        if self.spread is not None:
            error = self.spread / self.items**0.5
            seen = drop + (error * float(draw().sum()) / self.items**0.5 if draw else 0.0)
            return _spread(self.items, round(seen, 5), self.spread)
        won = min(WON * drop / (1 - WON), (1 - drop) / 2)
        parts = drop + won, won
        if draw is None:
            count = [round(self.items * p) for p in parts]
        else:
            # each item is lost, won or neither by one normal number
            hit = draw()
            count = [int((hit < stats.norm.ppf(parts[0])).sum())]
            count.append(int((hit > -stats.norm.ppf(parts[1])).sum()))
        return _binary(self.items, count[0], min(count[1], self.items - count[0]))

    def provable(self) -> float:
        """The largest drop that the selection proves to be allowed, as it is on average."""
        low, high = 0.0, self.max_drop
        for _ in range(30):
            middle = (low + high) / 2
            found = judged(*self.scores(middle, None)).upper <= self.max_drop
            low, high = (middle, high) if found else (low, middle)
        return low

    def weights(self, seed: int) -> dict[str, dict[str, float]]:
        """The true effects of one seed."""
        pick, model = random.Random(f"effects {seed}"), self.effects
        return {
            s: {
                c: model.scale * d**model.steep * pick.lognormvariate(0, model.spread)
                if d
                else 0.0
                for c, d in row.items()
            }
            for s, row in self.damage.items()
        }

    def optimum(self, weights: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """The fastest plan whose drop is provable, by the integer program."""
        pairs = [(s, c) for s, row in self.damage.items() for c in row]
        weight = np.array([weights[s][c] for s, c in pairs])
        saving = np.array([self.saving.get(c, 0.0) for _, c in pairs])
        one = np.array([[float(s == site) for s, _ in pairs] for site in self.damage])
        room = self.effects.total(self.provable())
        solved = optimize.milp(
            -saving,
            constraints=[
                optimize.LinearConstraint(one, 1, 1),
                optimize.LinearConstraint(weight / room, -np.inf, 1.0),
            ],
            bounds=optimize.Bounds(0, 1),
            integrality=np.ones(len(pairs)),
        )
        return {s: c for (s, c), x in zip(pairs, solved.x, strict=True) if x > 0.5}


@cache
def _binary(items: int, lost: int, won: int) -> tuple[Tensor, Tensor]:
    base, plan = torch.zeros(items).double(), torch.zeros(items).double()
    base[:lost] = 1
    plan[items - won :] = 1
    return base, plan


@cache
def _spread(items: int, drop: float, spread: float) -> tuple[Tensor, Tensor]:
    sign = torch.where(torch.arange(items) % 2 == 0, 1.0, -1.0).double()
    return torch.ones(items).double(), 1 - drop + spread * sign


_bounds: dict[tuple[int, ...], Any] = {}


def judged(base: Tensor, plan: Tensor) -> Bound:
    """``bound``, once for each pair."""
    key = (id(base), id(plan))
    if key not in _bounds:
        _bounds[key] = bound(base, plan)
    found: Bound = _bounds[key]
    return found


def recorded(name: str) -> dict[str, Any]:
    """A committed result."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def digits() -> Problem:
    """The built-in task: the committed run, and all sites in one form after calibration."""
    run = recorded("digits_cpu.json")
    damage, saving = run["sensitivity"], run["facts"]["saving_ms_per_site"]
    plans: list[Scored] = []
    for row in run["front"]:
        parts = [row["selection"], row["held_out"]]
        items = sum(x["items"] for x in parts)
        drop = sum(x["drop"] * x["items"] for x in parts) / items
        plans.append(([damage[s][c] for s, c in row["forms"].items()], drop, items))
    for row in recorded("recovery_digits_cpu.json")["rows"]:
        if (row["stage"], row["seed"]) == ("calibrate", 0) and row["form"] != "skipat":
            moved = [x[row["form"]] for x in damage.values()]
            plans.append((moved, row["drop"], row["items"]))
    first = run["front"][0]
    base = first["estimate_ms"] + sum(saving.get(c, 0.0) for c in first["forms"].values())
    model = fitted(plans, run["facts"]["baseline_score"] - 0.1, SHAPES)
    origin = "recorded damage, savings and drops of the built-in task"
    return Problem(damage, model, saving, base, 400, 0.02, None, origin)


def minilm() -> Problem:
    """MiniLM at 512 tokens: damage at 256, the drops of converted layers there, times at 512."""
    run, speed = recorded("minilm_recovered_cpu.json"), recorded("recovery_minilm_512_cpu.json")
    damage, names = run["sensitivity"], {"sigmoid": "sigmoid", "skipat": "skipat r=0.5"}
    plans: list[Scored] = [
        (
            [damage[s][names[row["form"]]] for s in row["sites"]],
            row["reciprocal_rank"]["drop"],
            row["items"],
        )
        for row in recorded("recovery_minilm_cpu.json")["rows"]
        if (row["stage"], row["seed"]) == ("local", 0) and row["form"] in names
    ]
    shape = digits().effects
    first = run["front"][0]["selection"]
    model = fitted(plans, first["score"], [(shape.steep, shape.power)])
    (times,) = [
        r
        for r in recorded("lossless_cpu.json")["rows"]
        if r["model"] == "minilm" and r["dtype"] == "float32"
    ]
    base, sites, facts = speed["speed"]["baseline_ms"], len(damage), run["facts"]
    skipped = (1 - 1 / speed["speed"]["skipped"]["median"]) / (1 - 1 / facts["ceiling_skipat"])
    known = facts["saving_ms_per_site"]["skipat r=0.5"] / facts["baseline_ms"]
    saving = {
        "sigmoid": base * (1 - 1 / times["sigmoid"]["median"]) / sites,
        "skipat r=0.5": base * known * skipped,
    }
    spread = (first["upper"] - first["drop"]) / 1.645 * first["items"] ** 0.5
    origin = "damage and drops recorded at 256 tokens, times at 512"
    return Problem(damage, model, saving, base, first["items"], 0.01, spread, origin)


def kernels() -> tuple[dict[str, float], float]:
    """Milliseconds that each choice saves in a layer of 1024 tokens, and those of the layer.

    Sigmoid and relu as the kernels were timed; hydra as if attention took no time; skipat, and
    the rest of the layer, in the proportions of the built-in task.
    """
    rows, run = recorded("cpu_attention_cpu.json")["goals"], recorded("digits_cpu.json")["facts"]
    took = {r["h"]: r for r in rows if (r["n"], r["d"], r["dtype"]) == (1024, 64, "float32")}
    exact, known = took["sigmoid"]["sdpa"]["ms"], run["saving_ms_per_site"]
    saving = {h: exact - took[h]["attnpass"]["ms"] for h in ("sigmoid", "relu")}
    saving["hydra"] = exact
    for name in ("skipat r=0", "skipat r=0.5"):
        saving[name] = exact * known[name] / known["hydra"]
    return saving, exact / run["attention_share"]


def layers(count: int) -> Problem:
    """A vision transformer of so many layers: recorded damage and drops of random plans.

    It runs on few tokens; the times are those of the kernels at 1024.
    """
    known = recorded(f"layers_{count}_cpu.json")
    damage, (saving, layer) = known["sensitivity"], kernels()
    plans: list[Scored] = [
        ([damage[s][c] for s, c in x["forms"].items()], x["drop"], x["items"])
        for x in known["plans"]
    ]
    model = fitted(plans, known["score"] - 0.1, SHAPES)
    origin = "recorded damage and drops of a model trained on digits; times of the kernels"
    return Problem(damage, model, saving, count * layer, 400, 0.02, None, origin)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits,
    "minilm_512": minilm,
    "layers_24": partial(layers, 24),
    "layers_96": partial(layers, 96),
}
