"""The sampler: finds the constrained best, asks for no plan twice, ends."""

from __future__ import annotations

from attnpass.tuner.search.learned import Effects
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


def test_what_is_learned_finds_the_best_in_fewer_trials():
    """One site in four is harmless, which the damage does not tell."""
    space = {f"s{i}": ["softmax", "hydra"] for i in range(16)}
    effects = Effects({s: {"softmax": 0.0, "hydra": 1.0} for s in space}, {"hydra": 1.0}, 1.0)
    harm = {s: 0.01 if i % 4 == 0 else 0.8 for i, s in enumerate(space)}

    def best(effects, trials):
        found = []

        def evaluate(plan):
            lost = sum(harm[s] for s, c in plan.items() if c == "hydra")
            saved = list(plan.values()).count("hydra")
            found.append(saved if lost <= 1 else 0)
            if effects:
                effects.tell(plan, lost, 1e-3)
            return Outcome(16.0 - saved, lost - 1)

        unchanged = dict.fromkeys(space, "softmax")
        seeds = [unchanged, *({**unchanged, s: "hydra"} for s in space)]
        assert search(space, evaluate, seeds, trials=trials, effects=effects) == trials
        return max(found)

    assert best(effects, 32) == 5 > best(None, 32)


def test_search_ends_when_the_space_is_exhausted():
    found = search({"a": ["softmax", "hydra"]}, lambda p: Outcome(1.0, 0.0), [], trials=50)
    assert found == 2
