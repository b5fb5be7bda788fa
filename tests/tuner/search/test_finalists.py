"""Which plans are looked at on held-out items: gain against the chance of a proof."""

from __future__ import annotations

import pytest
import torch

from attnpass.tuner.measure import bound
from attnpass.tuner.search.finalists import chance, choose

LIMIT = 0.02


def drawn(n: int, lost: float, won: float, generator: torch.Generator) -> tuple:
    """Scores of 0 and 1 of a baseline and a plan that loses and wins these shares of items."""
    kind = torch.rand(n, generator=generator)
    base, plan = torch.ones(n), torch.ones(n)
    plan[kind < lost] = 0.0
    base[kind > 1 - won] = 0.0
    return base, plan


def test_the_chance_is_how_often_held_out_items_prove():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(900):
        shares = (0.05 * float(torch.rand((), generator=generator)), 0.01)
        foreseen = chance(*drawn(400, *shares, generator), LIMIT, 600, 0.95)
        proven = bound(*drawn(600, *shares, generator)).upper <= LIMIT
        rows.append((foreseen, float(proven)))
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        told, came = torch.tensor([r for r in rows if low <= r[0] < high]).mean(0).tolist()
        assert came == pytest.approx(told, abs=0.12)


def test_the_chance_is_of_any_scores():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(400, generator=generator)
    noise = 0.1 * torch.randn(400, generator=generator)
    noise -= noise.mean()
    likely = [chance(base, base + noise - drop, LIMIT, 600, 0.95) for drop in (0.0, 0.015, 0.04)]
    assert likely[0] > 0.9 > 0.5 > likely[1] > 0.05 > 1e-3 > likely[2]
    assert chance(base, base, 1e-9, 600, 0.95) < 0.5, "no loss at all proves no zero"


def chosen(plans: dict[str, tuple[float, float]], most: int) -> list[str]:
    """The names of the plans chosen, each given as gain and chance at any confidence."""
    return choose(list(plans), lambda name: plans[name][0], lambda name, _: plans[name][1], most)


def test_finalists_promise_the_largest_proven_gain():
    plans = {"safe": (0.1, 0.95), "fast": (0.6, 0.5), "faster": (0.9, 0.06), "twin": (0.59, 0.5)}
    assert chosen(plans, 1) == ["fast"]
    assert chosen(plans, 2) == ["fast", "safe"]
    assert chosen(plans, 4) == ["faster", "fast", "safe"], "a twin adds nothing"


def test_what_is_slower_or_hopeless_is_no_finalist():
    assert chosen({"slower": (-0.1, 1.0), "hopeless": (2.0, 0.01)}, 3) == []


def test_few_finalists_are_taken_where_a_closer_bound_costs_more_than_another_brings():
    gains = {"fast": 0.5, "safe": 0.01}

    def likely(name: str, confidence: float) -> float:
        return {"fast": 0.8, "safe": 0.9}[name] - 10 * (confidence - 0.95)

    assert choose(list(gains), gains.__getitem__, likely, 2) == ["fast"]
