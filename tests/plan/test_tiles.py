"""Tiles that a plan carries: found in the context in which they were measured, and only there."""

from __future__ import annotations

import json
import logging

from attnpass.kernels.tile import Tile
from attnpass.plan.tiles import add_tiles, tiles_for

HERE = {"device": "here", "threads": 2}


def test_tiles_come_back_in_the_same_context_only():
    carried: dict = {}
    add_tiles(carried, HERE, {"a": Tile(block_m=64)})
    add_tiles(carried, {**HERE, "threads": 4}, {"a": Tile(block_m=32)})
    carried = json.loads(json.dumps(carried))
    assert tiles_for(carried, dict(reversed(HERE.items()))) == {"a": Tile(block_m=64)}
    assert tiles_for(carried, {**HERE, "threads": 4}) == {"a": Tile(block_m=32)}
    assert tiles_for(carried, {"device": "here"}) == {}


def test_tiles_of_one_context_replace_each_other():
    carried: dict = {}
    add_tiles(carried, HERE, {"a": Tile(block_m=64)})
    add_tiles(carried, HERE, {"b": Tile(block_m=32)})
    assert len(carried) == 1 and tiles_for(carried, HERE) == {"b": Tile(block_m=32)}


def test_broken_tiles_are_told_and_not_used(caplog):
    with caplog.at_level(logging.WARNING, "attnpass"):
        for broken in ({"context": HERE}, {"context": HERE, "tiles": {"a": {"size": 3}}}, 3, {}):
            assert tiles_for({"x": broken}, HERE) == {}
    assert caplog.text.count("the plan's tiles are not used") == 4
