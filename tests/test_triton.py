"""The Triton forward kernels: under Triton's interpreter, or on a GPU if that is switched off.

Every output starts as NaN, and every input is a view into a buffer of NaN, so that a position
that is not written, or is read out of bounds, shows.
"""

from __future__ import annotations

import math

import problems
import pytest
import torch
import triton
from problems import CASES, Case
from tolerance import assert_near

from attnpass.kernels import reference, triton_launch

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
SCALE = 0.6
H = tuple(reference.H_FUNCTIONS)
TILE = (16, 16, 4, 2, 1)
# the interpreter keeps bfloat16 as uint16 and multiplies those: only a GPU can show such a dot
DOTS = (torch.float16,) if DEVICE == "cpu" else (torch.float16, torch.bfloat16)
# a Triton dot needs blocks of 16: sizes around that, where no tile divides
SIZES = {
    "exact": (16, 32, 16, 16),
    "odd": (17, 35, 5, 7),
    "one": (1, 1, 1, 1),
    "wide": (3, 18, 33, 20),
    "tall": (37, 5, 20, 33),
}


@pytest.fixture(autouse=True)
def nan_in_every_fresh_tensor():
    # on a GPU deterministic matmuls of the reference would ask for a cuBLAS workspace
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_kernels_do_run_under_triton():
    if DEVICE == "cpu":
        assert triton.knobs.runtime.interpret
        from attnpass.kernels.pointwise_triton import pointwise_forward

        assert type(pointwise_forward).__name__ == "InterpretedFunction"


def padded(x):
    """``x`` with the same numbers and dim order, as a view into a larger buffer of NaN (or 1)."""
    if x is None:
        return None
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    fill = True if x.dtype == torch.bool else math.nan
    buffer = torch.full([x.shape[i] + 2 for i in order], fill, dtype=x.dtype, device=DEVICE)
    for i in range(x.dim()):
        buffer = buffer.narrow(i, 1, x.shape[order[i]])
    view = buffer.permute([order.index(i) for i in range(x.dim())])
    view.copy_(x.detach())
    return view


def check(case: Case, h: str, dtype=torch.float32, terms=1.0, compute=None):
    p = problems.problem(case, dtype)
    q, k, v, bias, keep, tau, offset, gain = p.inputs()
    inputs = [padded(x) for x in (q, k, v, bias, keep)]
    small = [None if x is None else x.detach().to(DEVICE) for x in (tau, offset, gain)]
    got = triton_launch.pointwise(*inputs, *small, SCALE, h, case.causal, list(case.tile))
    want = reference.pointwise(*p.inputs(), scale=SCALE, h=h, causal=case.causal)
    assert got.dtype == dtype
    got = got.cpu()
    assert_near(got, want, terms=terms, compute=compute)
    assert bool((got[p.masked] == 0).all())


@pytest.mark.parametrize("name", CASES)
def test_every_feature(name):
    # gelu is not 0 at masked positions, and has both signs
    check(CASES[name].but(tile=TILE), "gelu")


@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", ["odd sizes", "all"])
def test_every_h(name, h):
    check(CASES[name].but(tile=TILE), h)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, causal):
    t, s, d, dv = SIZES[size]
    case = Case(b=1, t=t, s=s, d=d, dv=dv, causal=causal, tau=True, offset=(1, 2, 1, 1))
    check(case.but(tile=TILE), "softplus")


@pytest.mark.parametrize("tile", [(16, 16, 4, 2, 1), (32, 16, 4, 2, 1), (16, 32, 8, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles(tile, causal):
    case = Case(b=1, t=37, s=37, keep=(1, 1, 37, 37), causal=causal, empty_row=True)
    check(case.but(tile=tile), "gelu")


@pytest.mark.parametrize("h", ["sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("dtype", DOTS, ids=str)
def test_low_precision(dtype, h):
    # the weights are rounded to the dtype of v for the second dot: half an ulp of each product,
    # which the sum over keys cannot exceed by more than |p||v| does the result
    case = CASES["all"].but(t=19, s=21, keep=(2, 1, 19, 21), bias=(1, 4, 19, 21))
    check(case.but(offset=(1, 4, 19, 1), gain=(1, 4, 19, 1), tile=TILE), h, dtype, compute=dtype)


def test_weights_of_size_one_over_n_are_relatively_right():
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 300, 4)
    v = torch.ones(1, 1, 300, 2)
    offset = torch.full((1, 1, 1, 1), -math.log(300))
    on = [x.to(DEVICE) for x in (q, k, v)]
    got = triton_launch.pointwise(
        *on, None, None, None, offset.to(DEVICE), None, SCALE, "sigmoid", False, list(TILE)
    ).cpu()
    want = reference.pointwise(
        q, k, v, None, None, None, offset, scale=SCALE, h="sigmoid", causal=False
    )
    assert bool(((got - want).abs() <= 4e-6 * want.abs()).all())


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("h", H)
def test_extreme_logits(h):
    # +-300: exp2(-s) overflows float32, the weight does not
    q = torch.tensor([300.0, -300.0, 0.0]).view(1, 1, 3, 1)
    k, v = torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1)
    on = [x.to(DEVICE) for x in (q, k, v)]
    got = triton_launch.pointwise(
        *on, None, None, None, None, None, 1.0, h, False, list(TILE)
    ).cpu()
    want = reference.pointwise(q, k, v, None, None, None, None, scale=1.0, h=h, causal=False)
    assert_near(got, want)


# --- hydra ------------------------------------------------------------------------------------


def hydra(q, k, v, keep, causal, eps=1e-6, tile=TILE):
    inputs = [padded(x) for x in (q, k, v, keep)]
    return triton_launch.hydra(*inputs, None, causal, eps, list(tile)).cpu()


def check_hydra(b=2, h=2, t=6, s=6, d=4, causal=False, masked=None, dtype=torch.float32, **more):
    draw = torch.Generator().manual_seed(0)

    def heads(n):
        x = torch.randn(b, h, n, d, generator=draw).to(dtype)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if more.get("transposed") else x

    q, k, v = heads(t), heads(s), heads(s)
    keep = None if masked is None else torch.rand(masked, 1, 1, s, generator=draw) < 0.6
    if keep is not None:
        keep[-1] = False
    got = hydra(q, k, v, keep, causal, tile=more.get("tile", TILE))
    want = reference.hydra(q, k, v, keep, causal=causal, eps=1e-6)
    assert got.dtype == dtype
    assert_near(got, want)
    if keep is not None:
        assert bool((got[-1] == 0).all())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("masked", [None, 1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [1, 16, 37])
def test_hydra(t, causal, masked, transposed):
    check_hydra(t=t, s=t, causal=causal, masked=masked, transposed=transposed)


@pytest.mark.parametrize(("t", "s"), [(5, 40), (40, 5), (0, 5), (5, 0)])
def test_hydra_cross(t, s):
    check_hydra(t=t, s=s)


@pytest.mark.parametrize(("b", "h", "d"), [(1, 1, 1), (3, 3, 5), (1, 5, 33), (0, 2, 4)])
def test_hydra_features(b, h, d):
    check_hydra(b=b, h=h, d=d, t=19, s=19, causal=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_computes_low_precision_inputs_in_float32(causal, dtype):
    check_hydra(t=19, s=19, causal=causal, masked=2, dtype=dtype)


@pytest.mark.parametrize("tile", [(16, 16, 4, 2, 1), (32, 16, 8, 1), (128, 64, 4, 2, 1)])
def test_hydra_tiles(tile):
    check_hydra(t=70, s=70, causal=True, masked=2, tile=tile)


def test_hydra_of_zero_vectors_is_zero():
    x = torch.randn(1, 2, 20, 4)
    zero = torch.zeros_like(x)
    assert bool((hydra(zero, x, x, None, False) == 0).all())
    assert bool((hydra(x, zero, x, None, True) == 0).all())


def test_causal_hydra_never_sees_a_later_chunk():
    # the last of three chunks changes by a lot: what precedes it must not be found by subtraction
    q, k, v = torch.randn(3, 1, 2, 48, 4)
    later = v.clone()
    later[:, :, 40:] = 1e8
    before = hydra(q, k, v, None, True)[:, :, :40]
    after = hydra(q, k, later, None, True)[:, :, :40]
    assert torch.equal(before, after)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("h", H)
def test_causal_pointwise_never_sees_a_later_key(h):
    q, k, v = torch.randn(3, 1, 2, 37, 4)
    after = []
    for size in (1.0, 1e3):
        changed = [torch.cat([x[:, :, :20], x[:, :, 20:] * size], 2).to(DEVICE) for x in (k, v)]
        args = (q.to(DEVICE), *changed, None, None, None, None, None, SCALE, h, True, list(TILE))
        after.append(triton_launch.pointwise(*args)[:, :, :20])
    assert torch.equal(*after)
