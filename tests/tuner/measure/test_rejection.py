"""Early rejection: exact for scores of 0 and 1, at its level for others."""

from __future__ import annotations

import pytest
import torch

from attnpass.tuner.measure.rejection import ALPHA, Rejection, by_batch, positions

SIZES = [25] * 8
EVERY = list(range(8))


def looked_at(rejection: Rejection, plan: dict[int, torch.Tensor]) -> tuple[bool, int]:
    """Whether a plan is rejected as its batches come in, and after how many."""
    found = {}
    for i in rejection.order:
        found[i] = plan[i]
        if rejection(found):
            return True, len(found)
    return False, len(found)


def test_items_by_batch():
    scores = torch.arange(5.0)
    assert {b: x.tolist() for b, x in by_batch(scores, [2, 9, 3], [0, 2]).items()} == {
        0: [0.0, 1.0],
        2: [2.0, 3.0, 4.0],
    }
    assert positions([2, 9, 3], [0, 2]) == {0: [0, 1], 2: [2, 3, 4]}


@pytest.mark.parametrize("seed", range(40))
def test_no_plan_of_zeros_and_ones_is_rejected_that_keeps_the_limit(seed):
    draw = torch.Generator().manual_seed(seed)
    base = (torch.rand(200, generator=draw) < 0.9).double()
    plan = (torch.rand(200, generator=draw) < 0.86).double()
    drop = float((base - plan).mean())
    for limit in (drop - 1e-6, drop + 1e-6):
        rejection = Rejection(by_batch(base, SIZES, EVERY), limit)
        rejected, _ = looked_at(rejection, by_batch(plan, SIZES, EVERY))
        assert not rejected or drop > limit


def test_the_hardest_items_come_first():
    """What plans lost before decides, at first what the baseline misses."""
    base = torch.ones(200).double()
    base[50:60] = 0
    rejection = Rejection(by_batch(base, SIZES, EVERY), 0.05)
    assert rejection.order[0] == 2
    plan = base.clone()
    plan[150:175] = 0
    rejection.note(by_batch(plan, SIZES, EVERY))
    assert rejection.order[:2] == [6, 2]
    rejected, looks = looked_at(rejection, by_batch(plan, SIZES, EVERY))
    assert rejected and looks == 1, "25 lost of 200, no more than 10 may be won"
    slow = Rejection(by_batch(base, SIZES, EVERY), 0.05)
    assert looked_at(slow, by_batch(plan, SIZES, EVERY))[1] > looks


def test_other_scores_are_rejected_wrongly_no_more_often_than_the_level():
    """Plans whose true drop is the limit, over 4000 simulations of 8 looks each."""
    draw, wrong, runs, limit = torch.Generator().manual_seed(0), 0, 4000, 0.1
    for seed in range(runs):
        base = torch.randn(200, generator=draw).double()
        plan = base - limit + 0.5 * torch.randn(200, generator=draw).double()
        rejection = Rejection(by_batch(base, SIZES, EVERY), limit, seed)
        wrong += looked_at(rejection, by_batch(plan, SIZES, EVERY))[0]
    assert wrong / runs <= ALPHA
    base = torch.randn(200, generator=draw).double()
    plan = base - 1.0 + 0.5 * torch.randn(200, generator=draw).double()
    rejection = Rejection(by_batch(base, SIZES, EVERY), limit)
    rejected, looks = looked_at(rejection, by_batch(plan, SIZES, EVERY))
    assert rejected and looks <= 2
