"""Hydra on a CPU, by the C++ kernels and by plain torch, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import HYDRA, LOW, check_hydra, hydra_inputs, run_hydra
from tolerance import GRADIENT, assert_near

from attnpass.kernels.call import HydraCall
from attnpass.kernels.cpu.hydra_launch import problem
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", HYDRA)
def test_hydra(name, causal, masked, transposed, which, path):
    if causal and HYDRA[name][2] != HYDRA[name][3]:
        causal = False  # a running sum needs T = S; legality declines the rest
    q, k, v, keep, grad = hydra_inputs(name, transposed=transposed)
    check_hydra(which, q, k, v, keep if masked else None, grad, causal)


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_float64(causal, which):
    check_hydra(which, *hydra_inputs("odd sizes", torch.float64), causal)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["plain", "odd sizes", "cross"])
def test_hydra_op_computes_low_precision_inputs_in_float32(name, causal, dtype, path):
    causal = causal and name != "cross"
    check_hydra("fused", *hydra_inputs(name, dtype), causal)


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("tile", [(1, 1, 4, 2, 1), (5, 7, 4, 2, 1), (128, 512, 4, 2, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_tiles(causal, tile, which):
    check_hydra(which, *hydra_inputs("odd sizes"), causal, tile=tile)


@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (2, 1, 1, 6)])
@pytest.mark.parametrize("which", ["fused", "aten"])
def test_hydra_keep_shapes_and_a_fully_masked_item(which, shape, path):
    q, k, v, _, grad = hydra_inputs("plain")
    keep = torch.ones(shape, dtype=torch.bool)
    keep[-1] = False
    check_hydra(which, q, k, v, keep, grad, False)
    assert bool((run_hydra(which, q, k, v, keep, False, 1e-6)[-1] == 0).all())


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 3e-5, 0.1])
def test_hydra_below_the_floor_of_the_norm(eps, which, path):
    # rows of zero, of a norm far below and far above the floor
    q, k, v, keep, grad = hydra_inputs("plain")
    q, k = q.detach().clone(), k.detach().clone()
    for x in (q, k):
        x[:, :, 0] = 0.0
        x[:, :, 1] *= 0.01 * math.sqrt(eps)
        x[:, :, 2] *= 0.02 * math.sqrt(eps)
    q, k = q.requires_grad_(), k.requires_grad_()
    out = run_hydra(which, q, k, v, keep, False, eps)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = run_hydra("reference", *wide, keep, False, eps)
    assert_near(out, want)
    got = torch.autograd.grad(out, (q, k, v), grad)
    wanted = torch.autograd.grad(want, wide, grad.double())
    for row in range(6):  # gradients differ in size by 1/sqrt(eps) between rows
        for name, g, w in zip("qkv", got, wanted, strict=True):
            assert_near(g[:, :, row], w[:, :, row], terms=GRADIENT, name=f"d{name} row {row}")


def test_chunks_follow_the_threads(threads):
    q, k, v, keep, _ = hydra_inputs("plain")
    call = HydraCall(q, k, v, keep, None, False, 1e-6, Tile())
    threads(3)
    assert problem(call).sums_shape == (2, 1, 3, 16)
    long = torch.randn(1, 3, 200, 4)
    call = HydraCall(long, long, long, None, None, False, 1e-6, Tile())
    assert problem(call).sums_shape == (1, 3, 3, 16)
    assert problem(call).numbers == (1, 3, 200, 200, 4, False, 3, 1e-6)
