"""The operators in plain torch, called by themselves."""

from __future__ import annotations

import problems
import pytest
import torch
from kernel_checks import SCALE, H, gradients, hydra_inputs, run, run_hydra
from problems import CASES
from tolerance import GRADIENT, assert_near

from attnpass.kernels import torch_tiled
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.tile import Tile
from attnpass.kernels.torch_tiled import _blocks


@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", ["odd sizes", "tile does not divide", "all"])
def test_pointwise(name, h):
    p = problems.problem(CASES[name])
    call = PointwiseCall(*p.inputs(), SCALE, h, p.case.causal, Tile.from_list(p.case.tile))
    with torch.no_grad():
        out = torch_tiled.pointwise(call)
        found = torch_tiled.pointwise_backward(p.grad, call, True)
    wide = p.double()
    want = run(wide, h, "reference")
    assert_near(out, want)
    wanted = gradients(want, wide)
    for name, got in found._asdict().items():
        if name in wanted:
            assert_near(got, wanted[name], terms=GRADIENT, name=f"d{name}")
        else:
            assert got is None


def test_a_bias_gets_its_gradient_only_where_it_is_asked_for():
    p = problems.problem(CASES["bias [S]"])
    call = PointwiseCall(*p.inputs(), SCALE, "relu", False, Tile())
    with torch.no_grad():
        assert torch_tiled.pointwise_backward(p.grad, call, False).bias is None


@pytest.mark.parametrize("causal", [False, True])
def test_hydra(causal):
    q, k, v, keep, grad = hydra_inputs("odd sizes")
    with torch.no_grad():
        call = HydraCall(q, k, v, keep, None, causal, 1e-6, Tile(block_m=4))
        out, found = torch_tiled.hydra(call), torch_tiled.hydra_backward(grad, call)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = run_hydra("reference", *wide, keep, causal, 1e-6)
    assert_near(out, want)
    wanted = torch.autograd.grad(want, wide, grad.double())
    for got, w in zip(found[:3], wanted, strict=True):
        assert_near(got, w, terms=GRADIENT)
    assert found.gain is None


def test_blocks_that_causality_hides_are_not_computed():
    q, k = torch.empty(1, 1, 10, 2), torch.empty(1, 1, 12, 2)
    tile = Tile(block_m=4, block_n=5)
    call = PointwiseCall(q, k, k, *[None] * 5, 1.0, "relu", True, tile)
    found = [(rows.stop, [c.stop for c in columns]) for rows, columns in _blocks(call)]
    assert found == [(4, [5]), (8, [5, 10]), (10, [5, 10])]
