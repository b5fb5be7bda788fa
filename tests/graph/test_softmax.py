"""Softmax written by hand is folded to one node, and nothing that only resembles it."""

import pytest
import torch
from tracing import traced

from attnpass.graph import op_name

X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def softmaxes(gm):
    return [n for n in gm.graph.nodes if op_name(n) == "softmax"]


def exp_over_sum(x):
    e = x.exp()
    return e / e.sum(-1, keepdim=True)


def shifted(x):
    return exp_over_sum(x - x.amax(-1, keepdim=True))


def log(x):
    return x.log_softmax(1).exp()


def logsumexp(x):
    return (x - x.logsumexp((-1,), keepdim=True)).exp()


@pytest.mark.parametrize(
    ("function", "dim"), [(exp_over_sum, -1), (shifted, -1), (log, 1), (logsumexp, -1)]
)
def test_a_softmax_written_by_hand_is_one_node(function, dim):
    gm = traced(function, X)
    (node,) = softmaxes(gm)
    assert node.args[1] == dim
    torch.testing.assert_close(gm(X), function(X), rtol=0, atol=1e-14)


def other_tensor(x):
    return x.exp() / (x * 2).exp().sum(-1, keepdim=True)


def two_axes(x):
    e = x.exp()
    return e / e.sum((-1, -2), keepdim=True)


def axis_dropped(x):
    e = x[0, :4, :4].exp()
    return e / e.sum(-1)


def plus_one(x):
    """Softmax with a sink: one more in the sum."""
    e = x.exp()
    return e / (1 + e.sum(-1, keepdim=True))


def rounded(x):
    e = x.exp()
    return torch.div(e, e.sum(-1, keepdim=True), rounding_mode="floor")


def written(x):
    """The exponentials change before they are divided."""
    e = x.exp()
    e.mul_(torch.full((), 2.0, dtype=torch.float32))
    total = e.sum(-1, keepdim=True)
    return x.exp() / total


@pytest.mark.parametrize(
    "function", [other_tensor, two_axes, axis_dropped, plus_one, rounded, written]
)
def test_near_misses_keep_their_numbers_and_are_not_folded(function):
    gm = traced(function, X)
    assert softmaxes(gm) == []
    torch.testing.assert_close(gm(X.clone()), function(X.clone()), rtol=0, atol=1e-12)
