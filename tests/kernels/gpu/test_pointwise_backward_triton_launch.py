"""The launches of the backward: which gradients there are, the same bits in every run."""

from __future__ import annotations

import problems
import pytest
import torch
from problems import CASES
from triton_checks import DEVICE, SCALE, TILE, on_device, padded

from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.gpu import (
    pointwise_backward_triton_launch,
    pointwise_triton_launch,
)
from attnpass.kernels.tile import Tile


def test_the_same_bits_in_every_run():
    p = problems.problem(CASES["all"].but(t=37, s=35, keep=(2, 1, 37, 35), bias=(1, 4, 37, 35)))
    p.offset, p.gain = (torch.randn(1, 4, 37, 1) for _ in range(2))
    inputs, _ = on_device(p)
    call = PointwiseCall(*inputs, SCALE, "gelu", True, Tile.from_list(TILE))
    assert pointwise_triton_launch.prepare(call).form.offset == 2
    grad = padded(torch.ones(2, 4, 37, 5))
    runs = [
        [
            pointwise_triton_launch.pointwise(call),
            *pointwise_backward_triton_launch.pointwise_backward(grad, call, True),
        ]
        for _ in range(2)
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("needs_bias", [False, True])
def test_there_is_no_gradient_of_what_a_call_lacks(needs_bias):
    inputs, _ = on_device(problems.problem(CASES["bias [H, T, S]"]))
    call = PointwiseCall(*inputs, SCALE, "relu", False, Tile.from_list(TILE))
    grad = torch.ones(2, 2, 6, 4, device=DEVICE)
    found = pointwise_backward_triton_launch.pointwise_backward(grad, call, needs_bias)
    assert (found.bias is not None) == needs_bias
    assert found.tau is None and found.gain is None
    assert found.offset.shape == call.offset.shape
