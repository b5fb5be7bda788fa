"""What the tests of the Triton kernels share: inputs within NaN, calls checked in float64.

The kernels run under Triton's interpreter, or on a GPU if that is switched off. Every output
starts as NaN (tests/kernels/gpu/conftest.py), and every input is a view into a buffer of NaN, so
that a position that is not written, or is read out of bounds, shows.
"""

from __future__ import annotations

import math

import problems
import pytest
import torch
import triton
from problems import Case
from tolerance import GRADIENT, assert_near

from attnpass.kernels import reference
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.gpu import (
    hydra_triton_launch,
    pointwise_backward_triton_launch,
    pointwise_triton_launch,
)
from attnpass.kernels.tile import Tile

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
SCALE = 0.6
H = tuple(reference.H_FUNCTIONS)
TILE = tuple(Tile(block_m=16, block_n=16).as_list())
LOW = (torch.float16, torch.bfloat16)


on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here: test_inner has the CPU's")


def padded(x):
    """``x`` with the same numbers and dim order, as a view into a larger buffer of NaN (or 1)."""
    if x is None:
        return None
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    fill = True if x.dtype == torch.bool else math.nan
    # 8 entries: what is aligned to 16 bytes stays so, as descriptors want it
    buffer = torch.full([x.shape[i] + 16 for i in order], fill, dtype=x.dtype, device=DEVICE)
    for i in range(x.dim()):
        buffer = buffer.narrow(i, 8, x.shape[order[i]])
    view = buffer.permute([order.index(i) for i in range(x.dim())])
    view.copy_(x.detach())
    return view


def on_device(p):
    """The inputs and positions of a problem, big ones within NaN."""
    q, k, v, bias, keep, tau, offset, gain = p.inputs()
    inputs = [padded(x) for x in (q, k, v, bias, keep)]
    small = [None if x is None else x.detach().to(DEVICE) for x in (tau, offset, gain)]
    slopes, lengths, window = p.positions()
    return [*inputs, *small], [
        *(None if x is None else x.to(DEVICE) for x in (slopes, lengths)),
        window,
    ]


def check(case: Case, h: str, dtype=torch.float32, terms=1.0, compute=None):
    """Forward and every gradient against autograd through the float64 reference."""
    p = problems.problem(case, dtype)
    inputs, positions = on_device(p)
    tile = Tile.from_list(case.tile)
    call = PointwiseCall(*inputs, SCALE, h, case.causal, tile, *positions)
    got = pointwise_triton_launch.pointwise(call)
    wide = p.double()
    want = reference.pointwise(
        *wide.spelled(), scale=SCALE, h=h.removesuffix("_tanh"), causal=case.causal
    )
    assert got.dtype == dtype
    got = got.cpu()
    assert_near(got, want, terms=terms, compute=compute)
    assert bool((got[p.masked] == 0).all())
    grad = padded(p.grad)
    found = pointwise_backward_triton_launch.pointwise_backward(grad, call, True)
    leaves = wide.leaves()
    wanted = torch.autograd.grad(want, list(leaves.values()), p.grad.double())
    wanted = dict(zip(leaves, wanted, strict=True))
    for name, x in found._asdict().items():
        if name not in wanted:
            assert x is None
            continue
        assert x.dtype == getattr(p, name).dtype
        assert_near(
            x.cpu(), wanted[name], terms=terms * GRADIENT, compute=compute, name=f"d{name}"
        )


def hydra(q, k, v, keep, causal, eps=1e-6, tile=TILE, gain=None):
    inputs = [padded(x) for x in (q, k, v, keep)]
    gain = None if gain is None else gain.detach().to(DEVICE)
    call = HydraCall(*inputs, gain, causal, eps, Tile.from_list(tile))
    return hydra_triton_launch.hydra(call).cpu()


def check_hydra(b=2, h=2, t=6, s=6, d=4, causal=False, masked=None, dtype=torch.float32, **more):
    """Forward and every gradient against autograd through the float64 reference."""
    draw = torch.Generator().manual_seed(0)

    def heads(n):
        x = torch.randn(b, h, n, d, generator=draw).to(dtype)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if more.get("transposed") else x

    q, k, v, grad = heads(t), heads(s), heads(s), heads(t)
    gain = torch.randn(1, h, 1, d, generator=draw) if more.get("gain", True) else None
    keep = None if masked is None else torch.rand(masked, 1, 1, s, generator=draw) < 0.6
    if masked == 2:
        keep[-1] = False
    tile = more.get("tile", TILE)
    got = hydra(q, k, v, keep, causal, tile=tile, gain=gain)
    leaves = [x.double().requires_grad_() for x in (q, k, v, gain) if x is not None]
    wide = leaves[3] if gain is not None else None
    want = reference.hydra(*leaves[:3], keep, wide, causal=causal, eps=1e-6)
    assert got.dtype == dtype
    assert_near(got, want)
    if masked == 2:
        assert bool((got[-1] == 0).all())
    wide_grad = grad.double()
    grad, *inputs = (padded(x) for x in (grad, q, k, v, keep))
    moved = None if gain is None else gain.to(DEVICE)
    call = HydraCall(*inputs, moved, causal, 1e-6, Tile.from_list(tile))
    found = hydra_triton_launch.hydra_backward(grad, call)
    wanted = torch.autograd.grad(want, leaves, wide_grad)
    for name, x, y in zip(("q", "k", "v", "gain"), found, (*wanted, None), strict=False):
        if y is None:
            assert x is None
        else:
            assert_near(x.cpu(), y, terms=GRADIENT, name=f"d{name}")
