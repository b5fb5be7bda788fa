"""Tiles, descriptors, addresses and pipeline stages of a launch."""

from __future__ import annotations

import math
from dataclasses import replace

import problems
import pytest
import torch
from problems import Case
from triton.runtime.errors import OutOfResources
from triton_checks import DEVICE, SCALE, TILE, check, on_device

from attnpass.errors import ArgumentError
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.gpu import (
    pointwise_backward_triton_launch,
    pointwise_triton_launch,
)
from attnpass.kernels.tile import Tile

TILES = {
    "tall": Tile(block_m=32, block_n=16),
    "broad": Tile(block_m=16, block_n=32, warps=8, stages=3),
    "descriptors": Tile(block_m=16, block_n=32, descriptors=1),
    "persistent": Tile(block_m=16, block_n=16, persistent=1),
    "all": Tile(block_m=32, block_n=32, descriptors=1, persistent=1),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("causal", [False, True])
def test_tiles(tile, causal, described):
    case = Case(b=2, h=4, g=2, t=37, s=37, d=8, dv=16, keep=(1, 1, 37, 37), causal=causal)
    check(case.but(tile=tuple(TILES[tile].as_list()), transposed=True, empty_row=True), "gelu")
    assert described == [bool(TILES[tile].descriptors)] * 3


@pytest.mark.parametrize("d", [5, 8])
def test_descriptors_only_where_hardware_takes_them(d, described):
    case = Case(b=1, t=20, s=20, d=d, dv=d, tile=tuple(TILES["descriptors"].as_list()))
    check(case, "relu")
    assert described == [d * 4 % 16 == 0] * 3


@pytest.mark.parametrize("tile", ["tall", "descriptors"])
def test_what_lies_beyond_the_lengths_is_never_read(tile):
    case = Case(
        b=2, t=21, s=40, d=8, dv=8, lengths=(19, 33), offset=(1, 2, 1, 1), gain=(1, 2, 1, 1)
    )
    p = problems.problem(case)
    inputs, positions = on_device(p)
    call = PointwiseCall(*inputs, SCALE, "sigmoid", False, TILES[tile], *positions)
    grad = p.grad.to(DEVICE)

    def run():
        found = pointwise_backward_triton_launch.pointwise_backward(grad, call, False)
        return [pointwise_triton_launch.pointwise(call), *(x for x in found if x is not None)]

    clean = run()
    for x in (call.k, call.v):
        for b, n in enumerate(case.lengths):
            x[b, :, n:] = math.nan
    for got, want in zip(run(), clean, strict=True):
        assert torch.equal(got, want)


def test_a_tile_without_room_runs_with_one_stage(monkeypatch):
    stages, right = [], pointwise_triton_launch.pointwise_forward

    class Tight:
        def __getitem__(self, grid):
            def launch(*args, **options):
                stages.append(options["num_stages"])
                if options["num_stages"] > 1:
                    raise OutOfResources(120_000, 101_376, "shared memory")
                return right[grid](*args, **options)

            return launch

    monkeypatch.setattr(pointwise_triton_launch, "pointwise_forward", Tight())
    monkeypatch.setattr(pointwise_triton_launch, "_ONE_STAGE", set())
    q, k, v = (x.to(DEVICE) for x in torch.randn(3, 1, 2, 20, 8))
    tile = Tile(block_m=16, block_n=16, stages=3)
    call = PointwiseCall(q, k, v, *[None] * 5, SCALE, "relu", False, tile)
    with pytest.raises(OutOfResources):  # a search must see it
        pointwise_triton_launch.pointwise(call)
    stages.clear()
    biased = replace(call, bias=torch.zeros(20, 20, device=DEVICE))
    first = pointwise_triton_launch.pointwise(biased)
    # the second call knows
    again = pointwise_triton_launch.pointwise(biased)
    assert torch.equal(first, again)
    assert stages == [3, 1, 1]


def test_addresses_beyond_two_to_the_31():
    # one item every 2^31 + 64 entries of memory that is never touched between them
    apart, (h, t, d) = 2**31 + 64, (2, 17, 16)
    torch.use_deterministic_algorithms(False)
    memory = torch.empty(apart + h * t * d, dtype=torch.float16, device=DEVICE)
    q, k, v = torch.randn(3, 2, h, t, d).half()
    far = memory.as_strided((2, h, t, d), (apart, t * d, d, 1))
    far.copy_(k)

    def attend(*given):
        inputs = [x.to(DEVICE) for x in given]
        call = PointwiseCall(*inputs, *[None] * 5, SCALE, "sigmoid", True, Tile.from_list(TILE))
        return pointwise_triton_launch.pointwise(call)

    assert torch.equal(attend(q, far, v), attend(q, k, v))
    # tokens far apart: offsets within a block pass 2^31
    step = 2**31 // 16 + 8
    rows = memory.as_strided((1, 1, t - 1, d), (0, 0, step, 1))
    rows.copy_(k[:1, :1, :16])
    one, values = q[:1, :1], v[:1, :1, :16]
    assert torch.equal(attend(one, rows, values), attend(one, k[:1, :1, :16], values))


def test_positions_and_terms_of_a_head_in_any_memory_and_of_any_size():
    """Entries with gaps, lengths beyond the keys, a window beyond 31 bits."""

    def results(tau, slopes, lengths, window):
        given = (q, k, k, None, None, tau, None, None, SCALE, "gelu", False, tile)
        call = PointwiseCall(*given, slopes, lengths, window)
        found = pointwise_backward_triton_launch.pointwise_backward(grad, call, False)
        return [pointwise_triton_launch.pointwise(call), *(x for x in found if x is not None)]

    tile = TILES["tall"]
    q, k, grad = (torch.randn(2, 4, n, 8, device=DEVICE) for n in (20, 18, 20))
    tau, slopes = torch.rand(2, 4, device=DEVICE) + 0.5
    apart = [x.repeat_interleave(3)[::3] for x in (tau, slopes)]
    lengths = torch.tensor([18, 0], device=DEVICE)
    wild = torch.tensor([2**33 + 18, 5, -(2**33), 5], device=DEVICE)[::2]
    wanted = results(tau, slopes, lengths, 0)
    for want, got in zip(wanted, results(*apart, wild, 2**62), strict=True):
        assert torch.allclose(want, got, atol=1e-6)


def test_a_tile_that_triton_cannot_compile_is_refused():
    q = torch.randn(1, 1, 4, 8, device=DEVICE)
    terms = (None,) * 5
    call = PointwiseCall(q, q, q, *terms, SCALE, "relu", False, Tile(block_m=48))
    with pytest.raises(ArgumentError, match="expected block_m on a GPU as a power of two"):
        pointwise_triton_launch.pointwise(call)
    with pytest.raises(ArgumentError, match="expected block_m on a GPU as a power of two"):
        pointwise_backward_triton_launch.pointwise_backward(q, call, False)
