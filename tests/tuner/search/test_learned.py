"""Effects are learned from scored plans: proposals keep the limit, lucky plans are corrected."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from attnpass.tuner.search.learned import GRID, Effects

SITES = [f"s{i}" for i in range(6)]
DAMAGE = {s: {"softmax": 0.0, "sigmoid": 1.0, "hydra": 2.0} for s in SITES}
SAVING = {"sigmoid": 1.0, "hydra": 2.5}


def over(plan, true):
    return sum(true[s, c] for s, c in plan.items() if c != "softmax")


def told(true, plans, error=1e-4):
    effects = Effects(DAMAGE, SAVING, allowed=0.02)
    for plan in plans:
        effects.tell(plan, over(plan, true), error)
    return effects


def plan_of(**changes):
    return {**dict.fromkeys(SITES, "softmax"), **changes}


ALONE = [plan_of(), *(plan_of(**{s: c}) for s in SITES for c in ("sigmoid", "hydra"))]


def test_a_proposal_is_near_the_best_plan_once_each_choice_was_seen():
    """The damage misleads: hydra is harmless in the last three sites, harmful in the first."""
    true = {(s, "sigmoid"): 0.004 for s in SITES}
    true |= {(s, "hydra"): 0.0001 if s >= "s3" else 0.2 for s in SITES}
    effects, kept = told(true, ALONE), []
    for _ in range(16):
        plan = effects.propose()
        assert list(plan) == SITES and "hydra" not in (plan["s0"], plan["s1"], plan["s2"])
        effects.tell(plan, over(plan, true), 1e-4)
        if over(plan, true) <= 0.02:
            kept.append(sum(SAVING.get(c, 0.0) for c in plan.values()))
    assert max(kept) >= 9.5  # 10.5 is the best that there is


def test_where_no_harm_is_seen_most_is_converted():
    effects = told({(s, c): 0.0 for s in SITES for c in SAVING}, ALONE)
    found = [sum(SAVING.get(c, 0.0) for c in effects.propose().values()) for _ in range(6)]
    assert max(found) >= 12.5  # five of six hydras


@pytest.mark.parametrize("seed", range(20))
def test_the_fastest_plan_is_that_of_trying_all(seed):
    draw = np.random.default_rng(seed)
    effects = Effects(DAMAGE, SAVING, allowed=1.0)
    shares = effects.changes * np.round(draw.uniform(0, 0.8, len(effects.pairs)), 2)
    by = dict(zip(effects.pairs, shares, strict=True))

    def saved(plan):
        return sum(SAVING.get(c, 0.0) for c in plan.values())

    every = [dict(zip(SITES, p, strict=True)) for p in itertools.product(*DAMAGE.values())]
    allowed = [p for p in every if sum(by[x] for x in p.items()) <= 1 + 1e-9]
    found = effects._fastest(shares)
    assert GRID % 100 == 0  # so that hundredths are whole steps
    assert found in allowed and saved(found) == max(map(saved, allowed))


def test_a_plan_that_was_lucky_is_corrected_by_what_the_others_say_of_its_parts():
    true = {(s, c): 0.004 * DAMAGE[s][c] for s in SITES for c in SAVING}
    plans = [
        plan_of(**dict(pairs))
        for n in (1, 2, 3)
        for pairs in itertools.combinations([(s, "hydra") for s in SITES], n)
    ]
    effects = told(true, plans, error=0.008)
    lucky = plan_of(s0="hydra", s1="hydra", s2="hydra", s3="hydra")
    effects.tell(lucky, 0.001, 0.008)  # its parts lose 0.032
    found, left = effects.believed()[tuple(lucky.values())]
    assert 0.01 < found < 0.04 and 0 < left < 0.02


def test_a_plan_that_was_measured_well_is_believed_itself():
    true = {(s, c): 0.004 * DAMAGE[s][c] for s in SITES for c in SAVING}
    effects = told(true, ALONE, error=1e-5)
    told_of = effects.believed()
    assert list(told_of) == [tuple(p.values()) for p in ALONE]
    for plan in ALONE[1:]:
        assert told_of[tuple(plan.values())][0] == pytest.approx(over(plan, true), rel=0.1)


@pytest.mark.parametrize(("allowed", "most"), [(0.01, 1e4), (1e-6, 0.9), (0.01, math.inf)])
def test_plans_that_are_far_out_are_no_obstacle(allowed, most):
    draw = np.random.default_rng(0)
    effects = Effects(DAMAGE, SAVING, allowed)
    for _ in range(60):
        plan = {s: str(draw.choice(list(row))) for s, row in DAMAGE.items()}
        over = 0.0 if draw.random() < 0.5 else most
        effects.tell(plan, over, most if math.isinf(most) else most / 10)
        assert list(effects.propose()) == SITES
    assert all(math.isfinite(x) and math.isfinite(e) for x, e in effects.believed().values())


def test_damage_that_is_nothing_or_off_the_scale_is_no_obstacle():
    damage = {"a": {"softmax": 0.0, "hydra": 0.0}, "b": {"softmax": 0.0, "hydra": 1e3}}
    effects = Effects(damage, {"hydra": 1.0}, allowed=0.01)
    effects.tell({"a": "softmax", "b": "softmax"}, 0.0, 0.001)
    effects.tell({"a": "hydra", "b": "softmax"}, 0.0, 0.001)
    effects.tell({"a": "softmax", "b": "hydra"}, 0.9, math.inf)
    assert effects.propose() == {"a": "hydra", "b": "softmax"}
    assert effects.believed()[("hydra", "softmax")][0] < 0.01
