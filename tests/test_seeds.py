"""Seeded numbers repeat, and the caller's own go on as if nothing had been drawn."""

from __future__ import annotations

import pytest
import torch

from attnpass.seeds import generators, seeded


def test_the_same_seed_gives_the_same_numbers_and_the_callers_go_on():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    found = []
    for seed in (1, 1, 2):
        with seeded(seed):
            found.append(torch.rand(3))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.rand(3), want)


def test_the_callers_numbers_go_on_after_an_error():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), seeded(1):
        _ = torch.rand(1) / (1 // 0)
    assert torch.equal(torch.rand(3), want)


def test_cuda_is_not_initialised_by_asking():
    before = torch.cuda.is_initialized()
    assert list(generators()) == list(range(torch.cuda.device_count() if before else 0))
    assert torch.cuda.is_initialized() == before
