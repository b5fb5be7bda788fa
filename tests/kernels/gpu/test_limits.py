"""Default tiles that fit each GPU."""

from __future__ import annotations

import pytest

from attnpass.errors import ArgumentError
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("d", [1, 16, 64, 80, 128, 256])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("size", [2, 4])
def test_every_default_tile_of_a_gpu_fits(sm, d, direction, size):
    tile = gpu.default(d, d, size, direction, sm)
    assert gpu.refusal(tile, d, d, size, direction, sm) is None
    assert tile.descriptors == (sm in (90, 100) and size == 2)


def test_larger_tiles_where_there_is_room():
    chosen = [gpu.default(d, d, 2, "forward", 90) for d in (64, 128, 256)]
    assert [t.block_m * t.block_n for t in chosen] == [128 * 128, 128 * 128, 128 * 64]
    assert gpu.refusal(Tile(descriptors=1), 64, 64, 2, "forward", 80) is not None


@pytest.mark.parametrize(
    ("tile", "sm", "why"),
    [
        (Tile(block_m=256, block_n=256, stages=4, warps=8), 80, "bytes of shared memory"),
        (Tile(block_m=128, block_n=256, stages=1, warps=4), 90, "registers a thread"),
        (Tile(block_m=64, block_n=64, descriptors=1), 80, "no tensor memory accelerator"),
        (Tile(block_m=64, block_n=64, descriptors=1), 90, None),
    ],
    ids=str,
)
def test_a_refusal_says_why(tile, sm, why):
    found = gpu.refusal(tile, 64, 64, 2, "forward", sm)
    assert (found is None) if why is None else why in found


@pytest.mark.parametrize(("n", "least"), [(1, 16), (16, 16), (17, 32), (80, 128)])
def test_power(n, least):
    assert gpu.power(n) == least


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_m": 8}, "expected block_m on a GPU as a power of two from 16 to 65536, got 8"),
        ({"block_n": 48}, "expected block_n on a GPU as a power of two from 16 to 65536, got 48"),
        ({"warps": 6}, "expected warps on a GPU as a power of two from 1 to 32, got 6"),
        ({"warps": 64}, "expected warps on a GPU as a power of two from 1 to 32, got 64"),
    ],
)
def test_what_triton_cannot_compile_is_refused(changes, message):
    names = ("block_m", "block_n", "warps")
    gpu.check_powers(Tile(), *names)
    with pytest.raises(ArgumentError, match=f"^{message}$"):
        gpu.check_powers(Tile(**changes), *names)
