"""The kernels of the backward alone: slopes, and the gradient of a bias that positions share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import CASES, Case, problem
from tolerance import GRADIENT, assert_near
from triton_checks import DEVICE, LOW, SCALE, TILE, H, check, padded

from attnpass.kernels import reference, torch_softmax
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.gpu import (
    pointwise_backward_triton_launch,
    pointwise_triton_launch,
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_gradients_of_exact_softmax(name, dtype):
    """Against plain torch operations in float64; a row without a kept key has none."""
    p = problem(CASES[name], dtype)
    terms = [padded(x) for x in p.inputs()[:5]]
    tile = Tile.from_list(TILE)
    call = PointwiseCall(*terms, None, None, None, SCALE, "softmax", p.case.causal, tile)
    out, lse = pointwise_triton_launch.softmax(call)
    grad = padded(p.grad)
    delta = (grad.float() * out.float()).sum(-1) + 0.25  # a gradient of the log-sum-exp too
    found = pointwise_backward_triton_launch.softmax_backward(grad, call, lse, delta, True)
    wide = {n: getattr(call, n) for n in ("q", "k", "v", "bias")}
    wide = {n: None if x is None else x.double() for n, x in wide.items()}
    exact = replace(call, **wide)
    delta = (grad.double() * torch_softmax.softmax(exact).out).sum(-1) + 0.25
    want = torch_softmax.softmax_backward(grad.double(), exact, delta, True)
    assert found.tau is found.offset is found.gain is None
    for name in ("q", "k", "v", "bias"):
        got, right = getattr(found, name), getattr(want, name)
        assert (got is None) == (right is None)
        if got is not None:
            compute = dtype if dtype in LOW else None
            assert_near(got, right, terms=4 * GRADIENT, compute=compute, name=f"d{name}")
