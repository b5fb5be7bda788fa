"""Tiles, and the classes of calls that share a measured one."""

from __future__ import annotations

import pytest
import torch

from attnpass.errors import ArgumentError
from attnpass.kernels.tile import IMPLEMENTATIONS, ShapeClass, Tile


def test_what_a_shape_class_tells_apart():
    q, v = torch.randn(2, 3, 197, 8), torch.randn(2, 3, 197, 6)
    rows, columns = torch.ones(2, 1, 197, 197), torch.ones(2, 1, 1, 197).bool()

    def name(q=q, v=v, bias=None, keep=None, h="sigmoid", causal=False, direction="forward"):
        return str(ShapeClass.of(q, q, v, bias, keep, h, causal, direction))

    assert name() == "sigmoid forward 8x256x256x8:6 float32 full"
    assert name(bias=rows, keep=columns) == "sigmoid forward 8x256x256x8:6 float32 full+rows"
    assert name(keep=columns[0, 0, 0]) == name(keep=columns)
    seen = [
        name(),
        name(v=q),
        name(keep=columns),
        name(bias=rows),
        name(causal=True),
        name(h="relu"),
        name(direction="backward"),
        name(q=torch.cat([q, q, q])),
        name(q=q.double()),
    ]
    assert len(set(seen)) == len(seen)


def test_a_size_without_a_value_has_no_class():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    n = ShapeEnv().create_unbacked_symint()
    q = torch.empty(1, 1, 4, 2, device="meta")
    with torch._subclasses.FakeTensorMode(shape_env=n.node.shape_env):
        k = torch.empty(1, 1, n, 2)
    assert ShapeClass.of(q, k, k, None, None, "relu", False) is None


@pytest.mark.parametrize("name", ["block_m", "block_n", "warps", "stages", "heads"])
@pytest.mark.parametrize("value", [0, -1])
def test_tile_refuses_sizes_below_one(name, value):
    with pytest.raises(ValueError, match=rf"expected {name} 1 to 65536, got {value}"):
        Tile(**{name: value})


@pytest.mark.parametrize("name", ["block_m", "block_n", "warps", "stages", "heads"])
def test_tile_refuses_sizes_that_overflow(name):
    with pytest.raises(ArgumentError, match=rf"expected {name} 1 to 65536, got {2**40}"):
        Tile(**{name: 2**40})
    assert getattr(Tile(**{name: 65536}), name) == 65536


@pytest.mark.parametrize("name", ["descriptors", "persistent"])
def test_tile_refuses_switches_beyond_on_and_off(name):
    with pytest.raises(ValueError, match=f"expected {name} 0 or 1, got 2"):
        Tile(**{name: 2})


def test_tile_refuses_an_unknown_implementation():
    with pytest.raises(ValueError, match="expected implementation in .*, got 'cuda'"):
        Tile("cuda")
    assert IMPLEMENTATIONS == ("fused", "aten")


def test_tile_round_trips():
    tile = Tile(block_m=3, block_n=5, warps=7, stages=1, heads=2, persistent=1)
    assert tile.as_list() == [3, 5, 7, 1, 2, 0, 1]
    assert Tile(**tile.as_dict()) == tile


def test_tile_from_a_list():
    tile = Tile(block_m=3, block_n=5, warps=7, stages=1, heads=2, persistent=1)
    assert Tile.from_list(tile.as_list()) == tile
    # graphs of an earlier version hold shorter lists
    assert Tile.from_list([4, 3, 4, 2, 1]) == Tile(block_m=4, block_n=3)
    with pytest.raises(ValueError, match="expected block_m 1 to 65536, got 0"):
        Tile.from_list([0, 3])
    with pytest.raises(ArgumentError, match="expected a tile of at most 7 numbers, got 8"):
        Tile.from_list([*tile.as_list(), 0])
