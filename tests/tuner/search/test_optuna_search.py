"""The sampler: finds the constrained best, asks for no plan twice, ends."""

from __future__ import annotations

from attnpass.tuner.search.optuna_search import Outcome, search


def test_search_finds_the_constrained_best_and_asks_for_no_plan_twice():
    space = {f"s{i}": ["softmax", "hydra", "relu"] for i in range(6)}
    harm = {"softmax": 0, "relu": 1, "hydra": 3}
    gain = {"softmax": 0, "relu": 1, "hydra": 4}
    asked = []

    def evaluate(plan):
        asked.append(tuple(plan.values()))
        return Outcome(
            100 - sum(gain[c] for c in plan.values()), sum(harm[c] for c in plan.values()) - 7
        )

    count = search(space, evaluate, [dict.fromkeys(space, "softmax")], trials=80)
    assert asked[0] == ("softmax",) * 6
    assert len(set(asked)) == len(asked) == count == 80
    feasible = [p for p in asked if sum(harm[c] for c in p) <= 7]
    # the best allowed: two hydra and one relu
    assert max(sum(gain[c] for c in p) for p in feasible) == 9


def test_search_ends_when_the_space_is_exhausted():
    found = search({"a": ["softmax", "hydra"]}, lambda p: Outcome(1.0, 0.0), [], trials=50)
    assert found == 2
