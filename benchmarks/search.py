"""How near the search comes to the best plan: `python benchmarks/search.py [NAME ...]`.

The problems: `digits`, the built-in task; `minilm_512`; and `layers_24` and `layers_96`, of
`benchmarks/deep.py`. What the search sees is recorded in committed results: the damage of each
(site, choice) alone, and what each choice saves, the latter as a machine with six competing
processes shows it (`benchmarks/trust.py`). The drops of plans are a model of interaction. Each
(site, choice) has an effect, a power of its damage times a constant; effects add up, and the sum
under another power, saturating, is the drop. Powers and constant are fitted to the few plans whose
drops are recorded; as far as these are off, the effects of every seed are changed at random. So
the damage misleads the search, and the best plan is known exactly, from an integer program. The
search is told the bound that the selection's items, give.

A run's result is its fastest finalist whose drop the items prove on average; its regret is the
time of this plan over that of the best such plan, minus 1. Compared at the same number of
evaluations: the search as a run calls it, random plans, and TPE and NSGA-II that know nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from scipy import optimize, stats
from torch import Tensor
from trust import Machine, Recorded

from attnpass import environment
from attnpass.tuner.measure import Bound, Protocol, bound, ratio
from attnpass.tuner.search.candidates import first_plans
from attnpass.tuner.search.finalists import chance, choose, standard_error
from attnpass.tuner.search.learned import Effects
from attnpass.tuner.search.optuna_search import Outcome, search
from attnpass.tuner.search.speed import Savings

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SEEDS, LOAD, ROUNDS = 50, 6, 30
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

    def guess(model: Effects, plan: Scored) -> float:
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


def seen_savings(problem: Problem, seed: int) -> dict[str, float]:
    """Savings per choice and site as a loaded machine shows them: medians of a few rounds."""
    sites = {c: sum(c in row for row in problem.damage.values()) for c in problem.saving}
    true = {
        c: problem.base_ms / (problem.base_ms - problem.saving[c] * n) for c, n in sites.items()
    }
    worker = Recorded(problem.base_ms, {}, ())
    worker.machine = Machine(LOAD, seed)
    found = {}
    for choice, gain in true.items():
        base, times = worker._times([1.0, gain], Protocol(ROUNDS))
        found[choice] = problem.base_ms * (1 - 1 / ratio(base, times).median) / sites[choice]
    return found


def regret(problem: Problem, method: str, trials: int, seed: int) -> float:
    """How much slower the result of one run is than the best plan, as a share of its time."""
    draw, weights = Draw(problem.items, seed), problem.weights(seed)
    best = problem.cost(problem.optimum(weights))
    savings = Savings(seen_savings(problem, seed))
    same = judged(*problem.scores(0.0, None)).upper
    effects = Effects(problem.damage, savings.per_site, problem.max_drop - same, seed)
    tried: dict[tuple[str, ...], tuple[dict[str, str], float, Tensor, Tensor]] = {}
    unchanged = dict.fromkeys(problem.damage, "softmax")

    def drop(plan: Plan) -> float:
        return problem.effects.drop(sum(weights[s][c] for s, c in plan.items()))

    def evaluate(plan: dict[str, str]) -> Outcome:
        cost = savings.left(problem.base_ms, plan.values())
        scores = problem.scores(drop(plan), draw)
        found = judged(*scores)
        if plan != unchanged:
            tried[tuple(plan.values())] = plan, cost, *scores
            effects.tell(plan, found.upper - same, standard_error(found))
        return Outcome(cost, found.upper - problem.max_drop)

    METHODS[method](problem, savings, effects, evaluate, trials, seed)
    told = effects.believed()

    @cache
    def likely(key: tuple[str, ...], confidence: float) -> float:
        over, error = told[key]
        above = over - effects.plans[key][0], error
        return chance(*tried[key][2:], problem.max_drop, 600, confidence, above)

    chosen = choose(
        list(tried),
        lambda key: problem.base_ms / tried[key][1] - 1,
        likely,
        4 if trials < 100 else 8,
    )
    provable = problem.provable() + 1e-9
    kept = [p for p, *_ in map(tried.__getitem__, chosen) if drop(p) <= provable]
    return min([problem.base_ms, *map(problem.cost, kept)]) / best - 1


Evaluate = Callable[[dict[str, str]], Outcome]


def ours(
    problem: Problem,
    savings: Savings,
    effects: Effects,
    evaluate: Evaluate,
    trials: int,
    seed: int,
) -> None:
    """As a run does: the first plans, then what the effects and TPE propose."""
    seeds = first_plans(problem.damage, savings)
    search(space(problem), evaluate, seeds, trials=trials, seed=seed, effects=effects)


def cold(
    problem: Problem, _: Savings, __: Effects, evaluate: Evaluate, trials: int, seed: int
) -> None:
    """TPE from the unchanged model."""
    seeds = [dict.fromkeys(problem.damage, "softmax")]
    search(space(problem), evaluate, seeds, trials=trials, seed=seed)


def anywhere(
    problem: Problem, _: Savings, __: Effects, evaluate: Evaluate, trials: int, seed: int
) -> None:
    """Random plans, with any number of converted sites."""
    pick, sites = random.Random(seed), list(problem.damage)
    known = set[tuple[str, ...]]()
    while len(known) < trials:
        chosen = set(pick.sample(sites, pick.randint(0, len(sites))))
        plan = {
            s: pick.choice(list(row)) if s in chosen else "softmax"
            for s, row in problem.damage.items()
        }
        if tuple(plan.values()) not in known:
            known.add(tuple(plan.values()))
            evaluate(plan)


def nsga(
    problem: Problem, _: Savings, __: Effects, evaluate: Evaluate, trials: int, seed: int
) -> None:
    """NSGA-II over time and drop, a plan that comes again not counted."""
    sampler = optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.enqueue_trial(dict.fromkeys(problem.damage, "softmax"))
    known: dict[tuple[str, ...], Outcome] = {}
    for __ in range(4 * trials):
        trial = study.ask()
        plan = {s: trial.suggest_categorical(s, list(row)) for s, row in problem.damage.items()}
        key = tuple(plan.values())
        if key not in known:
            if len(known) == trials:
                return
            known[key] = evaluate(plan)
        found = known[key]
        trial.set_constraint("drop", found.excess)
        study.tell(trial, [found.cost, found.excess])


METHODS = {"search": ours, "random": anywhere, "TPE": cold, "NSGA-II": nsga}


def space(problem: Problem) -> dict[str, list[str]]:
    """The choices per site."""
    return {site: list(row) for site, row in problem.damage.items()}


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

    It runs on 65 tokens; the times are those of the kernels at 1024.
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
BUDGETS = {
    "digits": (32, 200),
    "minilm_512": (32, 200),
    "layers_24": (32, 200),
    "layers_96": (32,),
}
"""Evaluations: those of a quick run, and where the samplers are not too slow those of a full."""


def compared(problem: Problem, trials: int, seeds: int) -> dict[str, Any]:
    """Regrets of all methods at one budget."""
    rows = {}
    for method in METHODS:
        found = sorted(regret(problem, method, trials, seed) for seed in range(seeds))
        rows[method] = {
            "median": statistics.median(found),
            "mean": statistics.fmean(found),
            "p90": found[int(0.9 * (len(found) - 1))],
            "worst": found[-1],
        }
        print(f"  {trials} {method}: {rows[method]}", flush=True)
    return rows


def table(value: Mapping[str, Any]) -> list[str]:
    """Mean regrets, in Markdown: a row per problem and number of evaluations."""
    lines = [
        f"| problem | evaluations | {' | '.join(METHODS)} |",
        f"| --- | --- |{' --- |' * len(METHODS)}",
    ]
    for name, row in value["rows"].items():
        for trials, found in row["regret"].items():
            cells = [f"{found[method]['mean']:.1%}" for method in METHODS]
            lines.append(f"| {name} | {trials} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Compare, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="the budget of a quick run alone")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept")
    parser.add_argument("--out", default=str(RESULTS / "search_cpu.json"))
    given = parser.parse_args()
    out = Path(given.out)
    if given.table:
        print("\n".join(table(json.loads(out.read_text()))))
        return
    value = {
        "command": " ".join(["python benchmarks/search.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "load": LOAD,
        "rows": json.loads(out.read_text())["rows"] if out.exists() else {},
    }
    for name in given.names:
        problem = PROBLEMS[name]()
        model = problem.effects
        print(f"{name}: {model}", flush=True)
        best = problem.cost(problem.optimum(problem.weights(0)))
        row = {
            "origin": problem.origin,
            "sites": len(problem.damage),
            "space": float(np.prod([len(r) for r in problem.damage.values()], dtype=float)),
            "model": vars(model),
            "provable": problem.provable(),
            "baseline_ms": problem.base_ms,
            "best_ms": best,
            "seeds": given.seeds,
            "regret": value["rows"].get(name, {}).get("regret", {}),
        }
        for trials in BUDGETS[name][: 1 if given.quick else 2]:
            row["regret"][str(trials)] = compared(problem, trials, given.seeds)
            value["rows"][name] = row
            out.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
