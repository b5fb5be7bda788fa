"""Layouts there and back: to ``[B, H, rows, columns]``, and to the layout that was."""

from __future__ import annotations

import pytest
import torch
from tracing import holders, traced

from attnpass.matching import SHARED, Lead, Operand
from attnpass.rewrite.layouts import canonical_operand, restored
from attnpass.rewrite.writer import Writer

LAYOUTS = {
    "no batch, no heads": ((5, 4), (0, 1), Lead(0, (), 1, False), (1, 1, 5, 4)),
    "batch alone": ((2, 5, 4), (0, 1, 2), Lead(1, (0,), 1, False), (2, 1, 5, 4)),
    "batch times heads": ((6, 5, 4), (0, 1, 2), Lead(1, (0,), 3, False), (2, 3, 5, 4)),
    "batch and heads": ((2, 3, 5, 4), (0, 1, 2, 3), Lead(2, (0, 1), 3, True), (2, 3, 5, 4)),
    "heads in front": ((3, 2, 5, 4), (1, 0, 2, 3), Lead(2, (1, 0), 3, True), (2, 3, 5, 4)),
    "heads behind tokens": ((2, 5, 3, 4), (0, 2, 1, 3), Lead(2, (0, 1), 3, True), (2, 3, 5, 4)),
    "two of batch": (
        (2, 6, 3, 5, 4),
        (0, 1, 2, 3, 4),
        Lead(3, (0, 1, 2), 3, True),
        (12, 3, 5, 4),
    ),
    "two of batch, no heads": (
        (2, 6, 5, 4),
        (0, 1, 2, 3),
        Lead(2, (0, 1), 1, False),
        (12, 1, 5, 4),
    ),
    "heads within an axis beside others": (
        (6, 2, 5, 4),
        (0, 1, 2, 3),
        Lead(2, (0, 1), 3, True, 0),
        (4, 3, 5, 4),
    ),
}


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_there_and_back(name, mode):
    shape, permutation, lead, expected = LAYOUTS[name]
    x = torch.randn(shape)
    gm = traced(lambda x: x * 1, x, mode=mode)
    operand = Operand(holders(gm)[0], permutation, lead)
    w = Writer(gm)
    result = w.graph.output_node()
    with w.graph.inserting_before(result):
        there = canonical_operand(w, operand)
        back = restored(w, there, operand, operand, x.dtype)
    result.args = ((there, back),)
    inside, again = w.finish()(x)
    assert inside.shape == expected
    assert torch.equal(again, x)


def test_a_shared_axis_becomes_one_of_size_1():
    x = torch.randn(2, 5, 4)
    gm = traced(lambda x: x * 1, x)
    operand = Operand(holders(gm)[0], (0, SHARED, 1, 2), Lead(2, (0, 1), 3, True))
    w = Writer(gm)
    with w.graph.inserting_before(w.graph.output_node()):
        w.graph.output_node().args = (canonical_operand(w, operand),)
    assert torch.equal(w.finish()(x), x[:, None])


def test_the_dtype_is_that_of_the_replaced_node():
    x = torch.randn(2, 3, 5, 4, dtype=torch.bfloat16)
    gm = traced(lambda x: x * 1, x)
    operand = Operand(holders(gm)[0], (0, 1, 2, 3), Lead(2, (0, 1), 3, True))
    w = Writer(gm)
    with w.graph.inserting_before(w.graph.output_node()):
        wide = w.call(torch.ops.aten.to.dtype, canonical_operand(w, operand), torch.float32)
        w.graph.output_node().args = (restored(w, wide, operand, operand, torch.float32),)
    assert w.finish()(x).dtype == torch.bfloat16
