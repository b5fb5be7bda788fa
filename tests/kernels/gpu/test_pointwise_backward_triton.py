"""The kernels of the backward alone: slopes, and the gradient of a bias that positions share."""

from __future__ import annotations

import pytest
import torch
from problems import Case
from tolerance import GRADIENT, assert_near
from triton_checks import DEVICE, TILE, H, check

from attnpass.kernels import reference
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.gpu import (
    pointwise_backward_triton_launch,
)
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (35,), (2, 1, 1, 35), (1, 2, 37, 1), (37, 35), (2, 2, 37, 35)]
)
def test_gradients_of_a_shared_bias(shape):
    check(Case(t=37, s=35, bias=shape, tau=True, tile=TILE), "sigmoid")


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("h", H)
def test_slopes_far_from_zero(h):
    # a slope that overflows or cancels shows where h is flat or large
    q = torch.tensor([40.0, -40.0, 3.0]).view(1, 1, 3, 1).to(DEVICE)
    k, grad = torch.ones(1, 1, 1, 1, device=DEVICE), torch.ones(1, 1, 3, 1, device=DEVICE)
    call = PointwiseCall(q, k, k, *[None] * 5, 1.0, h, False, Tile.from_list(TILE))
    found = pointwise_backward_triton_launch.pointwise_backward(grad, call, False)
    wide = q.cpu().double().requires_grad_()
    one = torch.ones(1, 1, 1, 1)
    want = reference.pointwise(wide, one, one, *[None] * 4, scale=1.0, h=h, causal=False)
    (wanted,) = torch.autograd.grad(want.sum(), wide)
    assert_near(found.q.cpu(), wanted, terms=GRADIENT)
