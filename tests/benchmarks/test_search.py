"""The benchmark of the search: its problems, their best plans, and the order of the methods."""

from __future__ import annotations

import itertools
import statistics

import pytest
from scripts import search, search_problems

MODEL = search_problems.Interaction(1.0, 0.5, 0.5, 0.9, 0.0, 0.0, 0.3, 0)
SAVING = {"sigmoid": 1.0, "hydra": 3.0}
DAMAGE = {
    f"s{i}": {"softmax": 0.0, "sigmoid": 0.01 * (i + 1), "hydra": 0.03 * (i + 1)} for i in range(6)
}
SMALL = search_problems.Problem(DAMAGE, MODEL, SAVING, 40.0, 400, 0.02, None, "made up")


def test_the_best_plan_is_that_of_all_plans():
    weights, provable = SMALL.weights(3), SMALL.provable()
    best = SMALL.cost(SMALL.optimum(weights))
    costs = []
    for choices in itertools.product(["softmax", *SAVING], repeat=6):
        plan = dict(zip(DAMAGE, choices, strict=True))
        if MODEL.drop(sum(weights[s][c] for s, c in plan.items())) <= provable:
            costs.append(SMALL.cost(plan))
    assert best == pytest.approx(min(costs)) and best < SMALL.base_ms


def test_the_model_finds_what_its_drops_were_made_of():
    made = search_problems.Interaction(0.75, 1.0, 2.0, 0.9, 0, 0, 0, 0)
    damages = [[0.01], [0.1], [0.01, 0.02, 0.3], [0.001, 0.5], [0.2, 0.2]]
    plans = [(d, made.drop(2.0 * sum(x**0.75 for x in d)), 10_000) for d in damages]
    found = search_problems.fitted(plans, 0.9, search_problems.SHAPES)
    assert (found.steep, found.power) == (0.75, 1.0)
    assert found.scale == pytest.approx(2.0, rel=0.05) and found.error < 0.005
    assert made.drop(made.total(0.1)) == pytest.approx(0.1)


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.3, 0.6, 0.88])
def test_a_plan_looks_as_bad_as_it_is(drop):
    base, plan = SMALL.scores(drop, None)
    assert float((base - plan).mean()) == pytest.approx(drop, abs=1 / SMALL.items)
    seen = [SMALL.scores(drop, search_problems.Draw(400, seed)) for seed in range(20)]
    found = statistics.fmean(float((a - b).mean()) for a, b in seen)
    assert found == pytest.approx(drop, abs=0.03)


def test_a_loaded_machine_shows_other_savings():
    seen = search.seen_savings(SMALL, 1)
    assert seen.keys() == SAVING.keys() and seen != SAVING
    assert all(0.3 * v < seen[c] < 3 * v for c, v in SAVING.items())


def test_the_search_is_no_worse_than_random_plans():
    found = {
        method: statistics.fmean(search.regret(SMALL, method, 24, seed) for seed in range(4))
        for method in ("search", "random")
    }
    assert -1e-9 <= found["search"] <= found["random"]
