"""A call and its check: a right tile passes, a wrong result does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning import TASKS, TINY

from attnpass.errors import CaptureError, OptionError
from attnpass.kernels import reference
from attnpass.kernels.select import default_tile, has_kernel
from attnpass.kernels.tile import ShapeClass, Tile
from attnpass.task import load_task
from attnpass.tuner.tiles.attention_call import ALLOWED, Call, Shape, shapes_of

SMALL = Shape(2, 4, 2, 70, 90, 8, 8)
TILE = Tile(block_m=16, block_n=64, heads=2)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"causal": True},
        {"mask": "columns"},
        {"mask": "rows", "causal": True},
        {"dtype": "bfloat16", "h": "relu"},
        {"dtype": "float16"},
        {"value_dim": 5},
        {"direction": "backward", "mask": "columns"},
        {"direction": "backward", "causal": True, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_right_tile_passes_and_a_wrong_result_does_not(change, monkeypatch):
    call = Call(replace(SMALL, **change))
    expected = call.expected()
    assert call.error(TILE, expected) <= ALLOWED[call.shape.dtype]
    right = call.run
    monkeypatch.setattr(call, "run", lambda tile: [x * 1.05 for x in right(tile)])
    assert call.error(TILE, expected) > ALLOWED[call.shape.dtype]


def test_the_class_of_a_shape_is_that_of_its_tensors():
    for change in ({}, {"causal": True}, {"mask": "rows"}, {"mask": "columns"}, {"value_dim": 5}):
        shape = replace(SMALL, **change)
        call = Call(shape)
        met = ShapeClass.of(call.q, call.k, call.v, None, call.keep, shape.h, shape.causal)
        assert shape.kind == met


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "expected dtype of float32, bfloat16, float16, got 'float64'"),
        ({"h": "tanh"}, "expected h of softmax, sigmoid, .*, got 'tanh'"),
        ({"mask": "causal"}, "expected mask of none, columns, rows, got 'causal'"),
        ({"queries": 0}, "expected sizes >= 1"),
        ({"heads": 3}, "heads a multiple of kv heads"),
    ],
)
def test_a_bad_shape_says_what_is_wrong(change, message):
    with pytest.raises(OptionError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize("text", ["1,2,3,4", "1,2,3,4,x", "", "1,2,3,4,5,6"])
def test_a_shape_is_five_numbers(text):
    with pytest.raises(OptionError, match="expected --shape B,H,T,S,d"):
        Shape.parse(text)


def test_the_default_is_what_runs_where_nothing_was_measured():
    few = Call(replace(SMALL, queries=8, keys=8))
    assert few.default() == Tile("aten")
    assert Call(replace(few.shape, dtype="bfloat16")).default() == default_tile("cpu", 8)
    backward = replace(few.shape, direction="backward")
    assert Call(backward).default() == default_tile("cpu", 8, "backward")


def test_shapes_of_a_task():
    task = load_task(TINY)
    found = shapes_of(task)
    exact = {"softmax"} if has_kernel("pointwise") else set()
    assert {s.h for s in found} == {"sigmoid", "relu"} | exact
    assert len({s.kind for s in found}) == len(found) == 2 + len(exact)
    (gelu,) = shapes_of(task, ["gelu"])
    assert gelu.h == "gelu" and gelu.towards("backward").kind.direction == "backward"


def test_every_h_can_be_tuned():
    for h in reference.H_FUNCTIONS:
        call = Call(replace(SMALL, h=h))
        assert call.error(TILE, call.expected()) <= ALLOWED["float32"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("more", [{}, {"causal": True}, {"mask": "rows"}, {"mask": "columns"}])
def test_exact_softmax_can_be_tuned_as_a_kernel_and_as_torchs_own(direction, more):
    same = {"queries": 70, "keys": 70} if more.get("causal") else {}
    call = Call(replace(SMALL, h="softmax", direction=direction, **more, **same))
    for tile in (TILE, Tile("aten"), call.default()):
        assert call.error(tile, call.expected()) <= ALLOWED["float32"]


def test_a_task_without_such_attention_is_an_error():
    with pytest.raises(CaptureError, match="expected attention that sigmoid or relu can take"):
        shapes_of(load_task(f"{TASKS}:no_attention"))
