"""Bounds, splits, ratios, the integer program: the statistics behind every printed number."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from attnpass.tuner.measure.accuracy import bound, divergence, needed, scores, split
from attnpass.tuner.measure.latency import floor, interleave, ratio
from attnpass.tuner.search.integer_program import front, recipes
from attnpass.tuner.search.optuna_search import Outcome, search


def paired(lost: int, won: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    base, plan = torch.ones(n), torch.ones(n)
    base[lost : lost + won] = 0
    plan[:lost] = 0
    return base.double(), plan.double()


@pytest.mark.parametrize(("n", "upper"), [(180, 0.0165), (360, 0.0083)])
def test_no_loss_at_all_gives_the_exact_bound(n, upper):
    assert bound(*paired(0, 0, n)).upper == pytest.approx(upper, abs=5e-5)


def test_needed_items_prove_the_limit_and_one_less_does_not():
    n = needed(0.02)
    assert bound(*paired(0, 0, n)).upper <= 0.02
    assert bound(*paired(0, 0, n - 1)).upper > 0.02


def test_tango_agrees_with_the_published_example():
    # Tango 1998, table III: 44 pairs, b = 1, c = 0: two-sided 95 % is (-0.0591, 0.1180) about 1/44
    upper = bound(*paired(1, 0, 44), confidence=0.975).upper
    assert upper == pytest.approx(0.1180, abs=1e-3)


@pytest.mark.parametrize(("p_lost", "p_won"), [(0.0, 0.0), (0.02, 0.01), (0.05, 0.05)])
def test_the_bound_covers_the_truth_as_often_as_it_says(p_lost, p_won):
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        u = torch.rand(300, generator=generator)
        base, plan = torch.ones(300).double(), torch.ones(300).double()
        plan[u < p_lost] = 0
        base[(u >= p_lost) & (u < p_lost + p_won)] = 0
        covered += bound(base, plan).upper >= p_lost - p_won
    # 95 % nominal; 400 draws of an honest bound fall below 368 with probability under 1 %
    assert covered >= 368


def test_scores_that_are_not_binary_use_student():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(200, generator=generator).double()
    plan = base - 0.1 + 0.05 * torch.randn(200, generator=generator).double()
    found = bound(base, plan)
    spread = float((base - plan).std())
    assert found.upper == pytest.approx(
        found.drop + float(stats.t.ppf(0.95, 199)) * spread / math.sqrt(200)
    )


def test_unpaired_scores_are_an_error():
    with pytest.raises(ValueError, match="expected paired scores, got 3 and 2"):
        bound(torch.ones(3), torch.ones(2))


def test_split_keeps_600_for_judging_else_crosses():
    big = split([50] * 20)
    assert (len(big.selection), len(big.held_out), big.crossed) == (8, 12, False)
    assert not set(big.selection) & set(big.held_out)
    small = split([50] * 10)
    assert small.crossed
    assert small.selection == small.held_out == tuple(range(10))


class FakeTask:
    pooled = False

    def __init__(self, rows):
        self.validation = [((torch.tensor(r),), None) for r in rows]

    @staticmethod
    def score(output, target):
        return output.double()


def test_early_stop_only_where_the_limit_is_out_of_reach():
    base = torch.ones(30).double()
    bad = FakeTask([[0.0] * 10, [1.0] * 10, [1.0] * 10])
    found, complete = scores(bad, lambda x: x, [0, 1, 2], base=base, max_drop=0.2)
    assert (len(found), complete) == (10, False)
    found, complete = scores(bad, lambda x: x, [0, 1, 2], base=base, max_drop=0.4)
    assert (len(found), complete) == (30, True)
    # items that the baseline missed may still be won back
    base[10:] = 0
    found, complete = scores(bad, lambda x: x, [0, 1, 2], base=base, max_drop=0.2)
    assert complete


def test_classes_that_are_ruled_out_have_no_divergence():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    out = x.clone()
    out[:, 3] = -math.inf
    moved = out + 0.1 * x.flip(1)
    task = SimpleNamespace(outputs="logits", validation=[((out,), None), ((moved,), None)])
    same, other = (divergence(task, lambda x: x, [out], [i]) for i in (0, 1))
    p, q = (t[:, [0, 1, 2, 4]].log_softmax(1) for t in (out, moved))
    assert same == 0 and other == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()))


def test_ratio_is_the_median_of_pairs_inside_its_interval():
    base = [2.0, 2.2, 2.1, 2.0, 2.3, 2.0, 2.1, 2.0, 2.2, 2.1]
    found = ratio(base, [b / 1.5 for b in base])
    assert found.median == pytest.approx(1.5)
    noisy = ratio(base, [1.0, 1.3, 0.9, 1.1, 1.2, 1.0, 1.1, 0.8, 1.0, 1.2])
    assert noisy.low <= noisy.median <= noisy.high
    assert noisy.low < noisy.high


def test_floor_of_identical_series_is_zero_and_grows_with_noise():
    same = [1.0] * 20
    assert floor(same, same) == 0
    assert floor(same, [1.0, 1.2] * 10) > 0.1


def test_interleave_runs_every_candidate_every_round():
    calls: list[str] = []
    times = interleave([lambda: calls.append("a"), lambda: calls.append("b")], rounds=4, warmup=1)
    assert [len(t) for t in times] == [4, 4]
    assert calls[2:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_front_takes_least_damage_for_each_saving():
    damage = {"a": {"softmax": 0.0, "hydra": 5.0}, "b": {"softmax": 0.0, "hydra": 1.0}}
    saving = {"a": {"softmax": 0.0, "hydra": 1.0}, "b": {"softmax": 0.0, "hydra": 1.0}}
    found = front(damage, saving, points=2)
    assert found == [(("a", "softmax"), ("b", "hydra")), (("a", "hydra"), ("b", "hydra"))]


def test_front_never_takes_what_costs_time_for_nothing():
    damage = {"a": {"softmax": 0.0, "relu": 1.0, "hydra": 2.0}}
    saving = {"a": {"softmax": 0.0, "relu": -1.0, "hydra": 1.0}}
    assert front(damage, saving) == [(("a", "hydra"),)]


def test_recipes_are_the_papers_plans():
    sites = [f"b{i}" for i in range(12)]
    legal = {s: (["hydra"] if s == "b0" else ["hydra", "skipat r=0"]) for s in sites}
    found = recipes(sites, legal)
    skipped = [[i for i, s in enumerate(sites) if plan[s] == "skipat r=0"] for plan in found]
    assert [3, 4, 5, 6, 7, 8] in skipped
    last_two = {s: "hydra" if s in ("b10", "b11") else "softmax" for s in sites}
    assert last_two in found


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
