"""How near the search comes to the best plan: `python benchmarks/search.py [NAME ...]`.

The problems, whose best plan is known exactly, are those of `benchmarks/search_problems.py`. A
search sees the recorded damage of each (site, choice), and savings as a machine with six competing
processes shows them (`benchmarks/trust.py`).

A run's result is its fastest finalist whose drop the items prove on average; its regret is the
time of this plan over that of the best such plan, minus 1. Compared at the same number of
evaluations: the search as a run calls it, random plans, and TPE and NSGA-II that know nothing.
The finalists of all are chosen as a run does, with what all scored plans tell together.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from search_problems import PROBLEMS, RESULTS, Draw, Plan, Problem, judged
from torch import Tensor
from trust import Machine, Recorded

from attnpass import environment
from attnpass.tuner.measure import Protocol, ratio
from attnpass.tuner.search.candidates import first_plans
from attnpass.tuner.search.finalists import chance, choose, standard_error
from attnpass.tuner.search.learned import Effects
from attnpass.tuner.search.optuna_search import Outcome, search
from attnpass.tuner.search.speed import Savings

SEEDS, LOAD, ROUNDS = 50, 6, 30


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
            "regret": value["rows"].get(name, {}).get("regret", {}),
        }
        for trials in BUDGETS[name][: 1 if given.quick else 2]:
            found = compared(problem, trials, given.seeds)
            row["regret"][str(trials)] = {"seeds": given.seeds, **found}
            value["rows"][name] = row
            out.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
