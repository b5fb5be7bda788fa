"""Bounds on the drop: against published numbers, and as often right as they say."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from attnpass.tuner.measure.bounds import bound, needed


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


def test_a_bound_can_be_foreseen_for_more_items():
    base, plan = torch.ones(100), torch.ones(100)
    plan[:2] = 0.0
    more = bound(base, plan, items=400)
    want = bound(base.repeat(4), plan.repeat(4))
    assert (more.items, more.drop) == (400, want.drop)
    assert more.upper == pytest.approx(want.upper) and more.upper < bound(base, plan).upper
