"""The kernels of hydra against float64."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_near
from triton_checks import TILE, check_hydra, hydra, padded

from attnpass.kernels import reference
from attnpass.kernels.call import HydraCall
from attnpass.kernels.gpu import (
    hydra_triton_launch,
)
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("masked", [None, 1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [1, 16, 37])
def test_hydra(t, causal, masked, transposed):
    check_hydra(t=t, s=t, causal=causal, masked=masked, transposed=transposed)


@pytest.mark.parametrize(("t", "s"), [(5, 40), (40, 5), (0, 5), (5, 0)])
def test_hydra_cross(t, s):
    check_hydra(t=t, s=s)


@pytest.mark.parametrize(("b", "h", "d"), [(1, 1, 2), (3, 3, 5), (1, 5, 33), (0, 2, 4)])
def test_hydra_features(b, h, d):
    check_hydra(b=b, h=h, d=d, t=19, s=19, causal=True, gain=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_computes_low_precision_inputs_in_float32(causal, dtype):
    check_hydra(t=19, s=19, causal=causal, masked=2, dtype=dtype)


def test_hydra_of_zero_vectors_is_zero():
    x = torch.randn(1, 2, 20, 4)
    zero = torch.zeros_like(x)
    assert bool((hydra(zero, x, x, None, False) == 0).all())
    assert bool((hydra(x, zero, x, None, True) == 0).all())


def test_hydra_of_one_feature_has_no_gradient_of_q():
    # the norm of a number is its size: what is left of dq is rounding
    x = torch.randn(3, 1, 1, 20, 1)
    q, k, v = (padded(y) for y in x)
    want = reference.hydra(*x, None, causal=False, eps=1e-6)
    assert_near(hydra(*x, None, False), want)
    call = HydraCall(q, k, v, None, None, False, 1e-6, Tile.from_list(TILE))
    dq = hydra_triton_launch.hydra_backward(q, call).q
    assert float(dq.abs().max()) <= 1e-5 * float((x[0] * x[2]).abs().sum() / x[0].abs().min())


def test_causal_hydra_never_sees_a_later_chunk():
    # the last of three chunks changes by a lot: what precedes it must not be found by subtraction
    q, k, v = torch.randn(3, 1, 2, 48, 4)
    later = v.clone()
    later[:, :, 40:] = 1e8
    before = hydra(q, k, v, None, True)[:, :, :40]
    after = hydra(q, k, later, None, True)[:, :, :40]
    assert torch.equal(before, after)
