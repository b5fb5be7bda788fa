"""A column of ones beside the values sums the weights: the division by it makes a softmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tracing import traced

from attnpass.graph import op_name

G = torch.Generator().manual_seed(1)
X, V = (torch.randn(3, 4, n, generator=G, dtype=torch.float64) for n in (4, 5))


def beside(v, column):
    return torch.cat([v, column], -1)


def ones(v):
    return torch.ones_like(v[..., :1])


def sliced(x, v):
    y = x.exp() @ beside(v, ones(v))
    return y[..., :-1] / y[..., -1:]


def shifted(x, v):
    y = (x - x.amax(-1, keepdim=True)).exp() @ beside(v, v.new_ones(3, 4, 1))
    return y[..., :5] * y[..., 5:].reciprocal()


def padded(x, v):
    y = torch.bmm(x.exp(), F.pad(v, (0, 1), value=1.0))
    return y[..., :5] / y[..., 5:6].expand(-1, -1, 5)


def split(x, v):
    top, total = (x.exp() @ beside(v, torch.full_like(v[..., :1], 1))).split([5, 1], -1)
    return top / total


def by_letters(x, v):
    y = torch.einsum("bij,bjd->bid", torch.exp2(x), beside(v, ones(v)))
    return y[..., :-1] / y[..., -1:]


@pytest.mark.parametrize("function", [sliced, shifted, padded, split, by_letters])
def test_it_is_one_softmax_of_the_values_alone(function):
    gm = traced(function, X, V)
    names = [op_name(node) for node in gm.graph.nodes]
    assert names.count("softmax") == 1 and not {"exp", "exp2", "cat", "pad", "div"} & {*names}
    torch.testing.assert_close(gm(X, V), function(X, V), rtol=0, atol=1e-13)
    leaves = [[t.clone().requires_grad_() for t in (X, V)] for _ in range(2)]
    grads = [
        torch.autograd.grad(f(*own).sin().sum(), own)
        for f, own in zip((gm, function), leaves, strict=True)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def twos(x, v):
    y = x.exp() @ beside(v, ones(v) * 2)
    return y[..., :-1] / y[..., -1:]


def filled_with_two(x, v):
    y = x.exp() @ beside(v, torch.full_like(v[..., :1], 2))
    return y[..., :-1] / y[..., -1:]


def first(x, v):
    y = x.exp() @ torch.cat([ones(v), v], -1)
    return y[..., :-1] / y[..., -1:]


def another_column(x, v):
    y = x.exp() @ beside(v, ones(v))
    return y[..., :-1] / y[..., :1]


def fewer_columns(x, v):
    y = x.exp() @ beside(v, ones(v))
    return y[..., 1:-1] / y[..., -1:]


def of_another_product(x, v):
    a, b = (f(x) @ beside(v, ones(v)) for f in (torch.exp, torch.exp2))
    return a[..., :-1] / b[..., -1:]


def over_keys(x, v):
    """The ones stand behind the keys: the last key has them as its value."""
    y = torch.einsum("bij,bdj->bid", x.exp(), torch.cat([x[..., :3], ones(x)], -1))
    return y[..., :-1] / y[..., -1:]


def of_no_exponential(x, v):
    y = x.square() @ beside(v, ones(v))
    return y[..., :-1] / y[..., -1:]


OTHERS = [twos, filled_with_two, first, another_column, fewer_columns, of_another_product]


@pytest.mark.parametrize("function", [*OTHERS, over_keys, of_no_exponential])
def test_near_misses_keep_their_numbers_and_are_not_folded(function):
    gm = traced(function, X, V)
    assert "softmax" not in [op_name(node) for node in gm.graph.nodes]
    torch.testing.assert_close(gm(X, V), function(X, V), rtol=0, atol=1e-12)


def test_under_autocast_it_stays():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gm = traced(sliced, X.float(), V.float())
    assert "softmax" not in [op_name(node) for node in gm.graph.nodes]
