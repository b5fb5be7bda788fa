"""The pointwise kernels against float64, forward and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import triton
from problems import CASES, POSITIONS, Case, problem
from tolerance import assert_near
from triton_checks import DEVICE, LOW, SCALE, TILE, H, check, on_a_gpu, padded

from attnpass.kernels import reference, torch_softmax
from attnpass.kernels.call import Normalised, PointwiseCall
from attnpass.kernels.gpu import (
    pointwise_triton_launch,
)
from attnpass.kernels.select import default_tile
from attnpass.kernels.tile import Tile

# a Triton dot needs blocks of 16: sizes around that, where no tile divides
SIZES = {
    "exact": (16, 32, 16, 16),
    "odd": (17, 35, 5, 7),
    "one": (1, 1, 1, 1),
    "wide": (3, 18, 33, 20),
    "tall": (37, 5, 20, 33),
}


def test_the_kernels_do_run_under_triton():
    if DEVICE == "cpu":
        assert triton.knobs.runtime.interpret
        from attnpass.kernels.gpu.pointwise_triton import pointwise_forward

        assert type(pointwise_forward).__name__ == "InterpretedFunction"


@pytest.mark.parametrize("name", [*CASES, *POSITIONS])
def test_every_feature(name):
    # gelu is not 0 at masked positions, and has both signs
    check((CASES | POSITIONS)[name].but(tile=TILE), "gelu")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 16, 17, 40])
def test_windows_across_blocks(window, causal):
    case = Case(b=1, t=70, s=75, window=window, causal=causal, lengths=(72,), offset=(1, 2, 1, 1))
    check(case.but(tile=TILE), "gelu")


@pytest.mark.parametrize("d", [1, 16, 31, 72, 128, 256])
def test_head_dims(d):
    check(Case(b=1, t=5, s=18, d=d, dv=d, causal=True, tile=TILE), "sigmoid")


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


def test_the_hardware_tanh_is_the_same_function():
    # under the interpreter tanh is exact; on a GPU it is wrong by 2^-11
    case = Case(t=19, s=21, tau=True, offset=(1, 2, 1, 1), tile=TILE)
    terms = 1.0 if DEVICE == "cpu" else 2**-11 / 2e-6
    check(case, "sigmoid_tanh", terms=terms)


@pytest.mark.parametrize("h", ["sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
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
    terms = (None, None, None, offset.to(DEVICE), None)
    call = PointwiseCall(*on, *terms, SCALE, "sigmoid", False, Tile.from_list(TILE))
    got = pointwise_triton_launch.pointwise(call).cpu()
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
    call = PointwiseCall(*on, *[None] * 5, 1.0, h, False, Tile.from_list(TILE))
    got = pointwise_triton_launch.pointwise(call).cpu()
    want = reference.pointwise(q, k, v, None, None, None, None, scale=1.0, h=h, causal=False)
    assert_near(got, want)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("h", H)
def test_causal_pointwise_never_sees_a_later_key(h):
    q, k, v = torch.randn(3, 1, 2, 37, 4)
    after = []
    for size in (1.0, 1e3):
        changed = [torch.cat([x[:, :, :20], x[:, :, 20:] * size], 2).to(DEVICE) for x in (k, v)]
        terms = (*[None] * 5, SCALE, h, True, Tile.from_list(TILE))
        call = PointwiseCall(q.to(DEVICE), *changed, *terms)
        after.append(pointwise_triton_launch.pointwise(call)[:, :, :20])
    assert torch.equal(*after)


@on_a_gpu
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", ["full", "causal", "window", "grouped", "lengths"])
def test_default_tiles(name, d, dtype, described):
    changes = {
        "full": {},
        "causal": {"causal": True, "s": 300},
        "window": {"window": 70, "causal": True, "s": 300},
        "grouped": {"h": 4, "g": 2},
        "lengths": {"lengths": (270, 100)},
    }[name]
    case = Case(b=2, h=2, g=2, t=300, s=270, d=d, dv=d, offset=(1, 1, 1, 1), transposed=True)
    case = case.but(tile=tuple(default_tile(DEVICE, d, "backward", dtype).as_list()), **changes)
    check(case, "sigmoid", dtype, compute=dtype)
    if torch.cuda.get_device_capability() == (9, 0):
        assert described == [True] * 3


@on_a_gpu
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_last_bit_of_causal_rows_does_not_depend_on_later_keys(dtype):
    q, k, v = torch.randn(3, 1, 2, 300, 64, device=DEVICE).to(dtype)
    tile = default_tile(DEVICE, 64, dtype=dtype)
    after = []
    for size in (1.0, 1e3):
        changed = [torch.cat([x[:, :, :201], x[:, :, 201:] * size], 2) for x in (k, v)]
        call = PointwiseCall(q, *changed, *[None] * 5, 0.125, "sigmoid", True, tile)
        after.append(pointwise_triton_launch.pointwise(call)[:, :, :201])
    assert torch.equal(*after)


TILES = Tile(block_m=16, block_n=16)


def exact(call: PointwiseCall) -> Normalised:
    """Softmax of a call in float64, by plain torch operations."""
    wide = {n: getattr(call, n) for n in ("q", "k", "v", "bias")}
    wide = {n: None if x is None else x.double() for n, x in wide.items()}
    return torch_softmax.softmax(replace(call, **wide))


def softmax_call(case: Case, dtype: torch.dtype) -> PointwiseCall:
    """A call of softmax with the inputs, masks and the tile of a case."""
    terms = [padded(x) for x in problem(case, dtype).inputs()[:5]]
    return PointwiseCall(
        *terms, None, None, None, SCALE, "softmax", case.causal, Tile.from_list(case.tile)
    )


def check_softmax(call: PointwiseCall) -> Normalised:
    """Output and log-sum-exp against float64; 0 and -inf in a row without a kept key."""
    dtype = call.q.dtype
    found, want = pointwise_triton_launch.softmax(call), exact(call)
    assert_near(found.out, want.out, terms=8, compute=dtype if dtype in LOW else None)
    kept = want.lse > -math.inf
    assert bool((found.lse[~kept] == -math.inf).all())
    assert_near(found.lse[kept], want.lse[kept], terms=8)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_exact_softmax(name, dtype):
    check_softmax(softmax_call(CASES[name].but(tile=TILE), dtype))


def test_exact_softmax_of_many_blocks_and_what_is_no_number():
    q, k, v = (torch.randn(1, 2, 70, 16, device=DEVICE) * 3 for _ in range(3))
    k = k + torch.linspace(-3, 3, 70, device=DEVICE).view(-1, 1)  # maxima grow along the keys
    q[0, 1, 5, 2] = math.nan
    call = PointwiseCall(q, k, v, *(None,) * 5, SCALE, "identity", True, TILES)
    out, lse = pointwise_triton_launch.softmax(call)
    want = exact(call)
    assert out.isnan().any(-1).nonzero().tolist() == [[0, 1, 5]]
    assert lse.isnan().nonzero().tolist() == [[0, 1, 5]]
    assert_near(out.nan_to_num(), want.out.nan_to_num(), terms=8)


FEW = {
    "one query": Case(b=1, h=2, g=2, t=1, s=1100, d=16, dv=8),
    "grouped": Case(b=1, h=4, g=2, t=1, s=1100, d=8, dv=16, keep=(1, 1, 1, 1100)),
    "per head": Case(b=1, h=4, g=2, t=1, s=800, d=5, dv=7, bias=(1, 4, 1, 800)),
    "more queries": Case(b=1, h=2, g=1, t=5, s=1030, d=16, dv=16, keep=(1, 1, 5, 1030)),
    "causal": Case(b=1, h=1, g=1, t=600, s=600, d=8, dv=8, causal=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_few_queries_share_the_keys_of_a_tile(name, dtype, split):
    """Softmax and a pointwise function; a row without a kept key is 0."""
    case = FEW[name].but(empty_row=FEW[name].keep is not None, transposed=True)
    case = case.but(tile=tuple(Tile(block_m=512 if case.causal else 16, block_n=16).as_list()))
    check(case.but(offset=(1, case.h, 1, 1)), "gelu", dtype, compute=dtype)
    check_softmax(softmax_call(case, dtype))
    assert min(split) > 1


def test_windows_and_lengths_of_keys_that_programs_share(split):
    tile = tuple(Tile(block_m=16, block_n=32).as_list())
    case = Case(b=2, h=1, g=1, t=3, s=1500, lengths=(700, 0), offset=(1, 1, 1, 1), tile=tile)
    check(case, "gelu")
    check(case.but(b=1, t=1000, s=1000, lengths=None, window=300, tile=TILE), "relu")
    assert split[0] > 1
