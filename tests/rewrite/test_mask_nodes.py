"""Masks made again: four axes that broadcast to the map, with the same values."""

from __future__ import annotations

import pytest
import torch
from tracing import holders, traced

from attnpass.matching import FirstOf, Lead, Placed, Recipe
from attnpass.rewrite.mask_nodes import combined, mask_node
from attnpass.rewrite.writer import Writer

PAIR = Lead(2, (0, 1), 3, True)
FLAT = Lead(1, (0,), 3, False)
WIDE = Lead(3, (0, 1, 2), 3, True)
MAP = (2, 3, 5, 7)

CASES = {
    "row": ((7,), PAIR, MAP, ()),
    "plane": ((5, 7), PAIR, MAP, ()),
    "padding": ((2, 1, 1, 7), PAIR, MAP, ()),
    "by head": ((3, 5, 7), PAIR, MAP, ()),
    "flat": ((6, 5, 7), FLAT, (6, 5, 7), ()),
    "flat, the same for all": ((1, 5, 7), FLAT, (6, 5, 7), ()),
    "flat padding, cut to a head": ((6, 1, 7), FLAT, (6, 5, 7), (FirstOf(3),)),
    "two of batch": ((4, 2, 3, 5, 7), WIDE, (4, 2, 3, 5, 7), ()),
    "two of batch, broadcast": ((4, 1, 1, 5, 7), WIDE, (4, 2, 3, 5, 7), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_lifted_to_four_axes_with_the_same_values(name):
    shape, lead, logits, steps = CASES[name]
    mask, scores = torch.randn(shape), torch.zeros(logits)
    if steps:
        mask = mask[::3].repeat_interleave(3, 0)  # repeated for every head
    gm = traced(lambda m, s: m * 1 + 0 * s.sum(), mask, scores)
    m, s = holders(gm)
    w = Writer(gm)
    with w.graph.inserting_before(w.graph.output_node()):
        made = mask_node(w, Placed(Recipe(m, False, steps), lead, s))
        w.graph.output_node().args = (made,)
    got = w.finish()(mask, scores)
    assert got.dim() == 4
    whole = scores.view(-1, 3, 5, 7).shape
    assert torch.equal(got.expand(whole), mask.expand(logits).reshape(whole))


def test_masks_of_a_kind_are_combined():
    a, b = torch.rand(5, 7) > 0.5, torch.rand(2, 1, 1, 7) > 0.5
    gm = traced(lambda a, b: (a & True, b & True), a, b)
    x, y = holders(gm)
    w = Writer(gm)
    assert combined(w, [], torch.ops.aten.bitwise_and.Tensor) is None
    with w.graph.inserting_before(w.graph.output_node()):
        placed = [Placed(Recipe(n), PAIR, x) for n in (x, y)]
        made = combined(w, placed, torch.ops.aten.bitwise_and.Tensor)
        w.graph.output_node().args = (made,)
    assert torch.equal(w.finish()(a, b), (a & b).expand(2, 1, 5, 7))
