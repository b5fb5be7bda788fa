"""Recipes: a mask rebuilt elsewhere in the graph is the mask that the model has.

Each step of a recipe comes from a spelling; softmax put back with the rebuilt mask must keep the
numbers of the model.
"""

import math

import pytest
import torch
from tracing import holders, only, projected, projections, proven, traced

from attnpass.matching.recipe import Recipe, recipe_shape

PAD = torch.ones(2, 7, dtype=torch.bool)
PAD[1, 4:] = False
SCORES = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def site(core, *masks):
    x, y, weights = projections()
    found = proven(projected(core), x, y, *masks, *weights, weights=3)
    assert [str(d) for d in found.declined] == []
    (region,) = found.regions
    return region.site, region.logits


def node_again(q, k, v, m):
    """The operators that shape the mask are applied again."""
    return (q @ k.mT).masked_fill(~m.view(2, 7).unsqueeze(1)[:, None], -1e9).softmax(-1) @ v


def lifted(q, k, v, m, b):
    """A bias of two axes beside a mask of four."""
    return (q @ k.mT + (b + torch.where(m, 0.0, -1e9).to(b.dtype)[:, None, None])).softmax(-1) @ v


def scaled(q, k, v, m, b):
    return ((q @ k.mT + b) * 0.5).softmax(-1) @ v


def cast(q, k, v, m, b):
    return (q @ k.mT + b.to(torch.float32).to(torch.float64)).softmax(-1) @ v


def above_the_fill(q, k, v, m):
    """A float mask of -inf that no input reaches, in numbers that only evaluation can know."""
    rows = torch.arange(5)[:, None] * 2 < torch.arange(7) - 1
    float_mask = torch.zeros(5, 7, dtype=q.dtype) + torch.where(rows, -math.inf, 0.0).double()
    return (q @ k.mT + float_mask).softmax(-1) @ v


def first_head(q, k, v, m):
    """A key mask that was repeated for every head, then viewed as [B, H, 1, S] again."""
    wide = m[:, None, None].expand(2, 3, 1, 7).reshape(6, 1, 7).view(2, 3, 1, 7)
    return (q @ k.mT).masked_fill(~wide, -1e9).softmax(-1) @ v


def first_of_heads(q, k, v, m):
    """Batch and heads in one axis, the mask repeated to it."""
    flat = [z.reshape(6, -1, 4) for z in (q, k, v)]
    wide = m[:, None, None].expand(2, 3, 1, 7).reshape(6, 1, 7)
    s = torch.bmm(flat[0], flat[1].mT).masked_fill(~wide, -1e9)
    return torch.bmm(s.softmax(-1), flat[2]).view(2, 3, 5, 4)


def expanded_like(q, k, v, m):
    """A sum of masks is viewed: each part is expanded first, as the view needs the full shape."""
    rows = torch.arange(5)[:, None] >= torch.arange(7) - 2
    keep = (rows & m[:, None]).view(2, 1, 5, 7)
    return (q @ k.mT).masked_fill(~keep, -1e9).softmax(-1) @ v


def negated(q, k, v, m):
    return (q @ k.mT).masked_fill(m.logical_not()[:, None, None], -1e9).softmax(-1) @ v


STEPS = {
    node_again: ({"padding"}, False),
    lifted: ({"padding"}, True),
    scaled: (set(), True),
    cast: (set(), True),
    above_the_fill: ({"arbitrary"}, False),
    first_head: ({"padding"}, False),
    first_of_heads: ({"padding"}, False),
    expanded_like: ({"arbitrary"}, False),
    negated: ({"padding"}, False),
}


@pytest.mark.parametrize("core", STEPS, ids=lambda f: f.__name__)
def test_a_rebuilt_mask_keeps_the_numbers(core):
    mask, bias = STEPS[core]
    masks = (PAD, SCORES) if bias else (PAD,)
    found, logits = site(core, *masks)
    assert (found.mask, found.bias) == (mask, bias)
    assert bool(logits.keeps) == bool(mask) and bool(logits.biases) == bias


def test_masks_of_other_heads_are_not_cut_to_one():
    """The nearest impostor: repeated along the batch, so every head has its own keys."""

    def core(q, k, v, m):
        wide = m[:, None, None].expand(2, 3, 1, 7).reshape(3, 2, 1, 7).transpose(0, 1)
        return (q @ k.mT).masked_fill(~wide, -1e9).softmax(-1) @ v

    assert site(core, PAD)[0].mask == {"arbitrary"}


def graph():
    gm = traced(lambda a, b: (a & b[:, None]).view(2, 1, 1, 7) * 1, PAD[:, None], PAD)
    return gm, Recipe(only(gm, "view"))


def test_a_recipe_on_another_base_keeps_steps_and_sign():
    gm, whole = graph()
    a, b = holders(gm)
    flipped = whole.on(a, flip=True)
    assert (flipped.base, flipped.negate, flipped.steps) == (a, True, whole.steps)
    assert len(whole.on(b, rank=4).steps) == 1  # lifted to four axes
    assert whole.on(a, rank=3).steps == ()


def test_the_shape_that_a_recipe_gives():
    gm, whole = graph()
    assert tuple(recipe_shape(whole)) == (2, 1, 1, 7)
    assert tuple(recipe_shape(whole.on(holders(gm)[1], rank=4))) == (1, 1, 2, 7)
