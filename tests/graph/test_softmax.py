"""Softmax written by hand is folded to one node, and nothing that only resembles it."""

import pytest
import torch
from tracing import traced

from attnpass.graph import op_name, unlike_softmax

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


def reciprocal(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e * e.sum(-1, keepdim=True).reciprocal()


def unsqueezed(x):
    e = (x - x.max(1, keepdim=True)[0]).exp()
    return e / e.sum(1).unsqueeze(1)


def floored(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True).clamp_min(1e-9)


def with_a_little(x):
    e = (x - x.max(-1, keepdim=True).values.detach()).exp()
    return e / (e.sum(-1, keepdim=True) + 1e-15)


def normalized(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return torch.nn.functional.normalize(e, p=1, dim=-1)


def by_its_norm(x):
    e = x.exp()
    return e / e.norm(p=1, dim=1, keepdim=True)


HANDS = [(exp_over_sum, -1), (shifted, -1), (log, 1), (logsumexp, -1), (reciprocal, -1)]
HANDS += [(unsqueezed, 1), (floored, -1), (with_a_little, -1)]
HANDS += [(normalized, -1), (by_its_norm, 1)]


@pytest.mark.parametrize(("function", "dim"), HANDS)
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
    e = x.exp()
    return e / (1 + e.sum(-1, keepdim=True))


def plus_one_shifted(x):
    m = x.amax(-1, keepdim=True).clamp(min=0)
    e = (x - m).exp()
    return e / ((-m).exp() + e.sum(-1, keepdim=True))


def plus_one_shifted_by_rows(x):
    m = x.amax(1, keepdim=True)
    e = (x - m).exp()
    return e * (e.sum(1, True) + torch.exp(-m)).reciprocal()


OFF_BY_ONE = [plus_one, plus_one_shifted, plus_one_shifted_by_rows]


@pytest.mark.parametrize("function", OFF_BY_ONE)
def test_a_softmax_off_by_one_is_one_of_a_zero_beside_the_logits(function):
    gm = traced(function, X)
    (node,) = softmaxes(gm)
    assert op_name(node.args[0]) == "cat"
    x, want = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.testing.assert_close(gm(x), function(want), rtol=0, atol=1e-14)
    grad = torch.randn_like(X)
    found, wanted = (torch.autograd.grad(f(y), y, grad)[0] for f, y in ((gm, x), (function, want)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def plus_two(x):
    e = x.exp()
    return e / (2 + e.sum(-1, keepdim=True))


def plus_one_of_shifted(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / (1 + e.sum(-1, keepdim=True))


def late(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return (e @ x.mT.sin()) / e.sum(-1, keepdim=True)


def late_of_each(x):
    e = x.exp()
    return torch.bmm(e, x.mT.sin()) * e.sum(-1)[..., None].reciprocal()


def late_by_letters(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return torch.einsum("bij,bjk->bik", e, x.mT.sin()) / e.sum(-1, keepdim=True, dtype=x.dtype)


@pytest.mark.parametrize("function", [late, late_of_each, late_by_letters])
def test_the_values_may_be_summed_before_the_division(function):
    gm = traced(function, X)
    (node,) = softmaxes(gm)
    assert node.args[1] in (-1, 2)
    torch.testing.assert_close(gm(X), X.softmax(-1) @ X.mT.sin(), rtol=0, atol=1e-12)


def with_base_two(x):
    e = torch.exp2(x)
    return e / e.sum(-1, keepdim=True)


def off_by_one_with_base_two(x):
    m = x.amax(-1, keepdim=True)
    e = torch.exp2(x - m)
    return e / (torch.exp2(-m) + e.sum(-1, keepdim=True))


@pytest.mark.parametrize("function", [with_base_two, off_by_one_with_base_two])
def test_powers_of_two_are_exponentials_of_other_logits(function):
    gm = traced(function, X)
    assert len(softmaxes(gm)) == 1
    torch.testing.assert_close(gm(X), function(X), rtol=0, atol=1e-14)


def turned(x):
    e = x.exp()
    return torch.einsum("bij,bjk->bki", e, x.mT) / e.sum(-1, keepdim=True)[:, :4]


def times_itself(x):
    e = (x @ x.mT).exp()
    return (e @ e) / e.sum(-1, keepdim=True)


def of_mixed_bases(x):
    m = x.amax(-1, keepdim=True)
    e = torch.exp2(x - m)
    return e / ((-m).exp() + e.sum(-1, keepdim=True))


def in_another_dtype(x):
    e = x.float().exp()
    return e / e.sum(-1, keepdim=True, dtype=torch.float64)


def over_rows(x):
    e = x.exp()
    return (e @ x.mT) / e.sum(1, keepdim=True)[:, :, :4]


def of_other_exponentials(x):
    return (x.exp() @ x.mT) / (x + 1).exp().sum(-1, keepdim=True)


def values_of_exponentials(x):
    e = x.exp()
    return (x @ e.mT) / e.sum(-1, keepdim=True).mT


def plus_another_shift(x):
    m = x.amax(-1, keepdim=True)
    e = (x - m).exp()
    return e / ((-m * 2).exp() + e.sum(-1, keepdim=True))


def shifted_by_each(x):
    m = x.mean() + x * 0.5
    e = (x - m).exp()
    return e / ((-m).exp() + e.sum(-1, keepdim=True))


def little_beside_unshifted(x):
    e = x.exp()
    return e / (e.sum(-1, keepdim=True) + 1e-9)


def much_beside_shifted(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / (e.sum(-1, keepdim=True) + 1e-3)


def another_maximum(x):
    e = (x - x.amax(1, keepdim=True)).exp()
    return e / (e.sum(-1, keepdim=True) + 1e-9)


def rounded(x):
    e = x.exp()
    return torch.div(e, e.sum(-1, keepdim=True), rounding_mode="floor")


def written(x):
    """The exponentials change before they are divided."""
    e = x.exp()
    e.mul_(torch.full((), 2.0, dtype=torch.float32))
    total = e.sum(-1, keepdim=True)
    return x.exp() / total


def normalized_unshifted(x):
    return torch.nn.functional.normalize(x.exp(), p=1, dim=-1)


def by_another_norm(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.norm(p=2, dim=-1, keepdim=True)


def by_the_norm_of_the_logits(x):
    return x.exp() / x.norm(p=1, dim=-1, keepdim=True)


OTHERS = [other_tensor, two_axes, axis_dropped, rounded, written, plus_two, plus_one_of_shifted]
OTHERS += [plus_another_shift, shifted_by_each, little_beside_unshifted, much_beside_shifted]
OTHERS += [turned, times_itself, of_mixed_bases, in_another_dtype]
OTHERS += [normalized_unshifted, by_another_norm, by_the_norm_of_the_logits]
OTHERS += [another_maximum, over_rows, of_other_exponentials, values_of_exponentials]


@pytest.mark.parametrize("function", OTHERS)
def test_near_misses_keep_their_numbers_and_are_not_folded(function):
    gm = traced(function, X)
    assert softmaxes(gm) == []
    torch.testing.assert_close(gm(X.clone()), function(X.clone()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (normalized_unshifted, "kept above a small number"),
        (little_beside_unshifted, "kept above a small number"),
        (by_another_norm, "2-norm"),
        (plus_two, "not divided by its sum alone"),
    ],
)
def test_what_is_no_softmax_says_why(function, why):
    gm = traced(function, X)
    (node,) = [n for n in gm.graph.nodes if op_name(n) == "exp"]
    assert why in unlike_softmax(node)


def test_a_softmax_of_one_row_is_one_of_a_map():
    gm = traced(lambda x: x.softmax(0) * 2, X[0, 0])
    (node,) = softmaxes(gm)
    assert node.meta["val"].shape == (1, 5) and node.args[1] == 1
    torch.testing.assert_close(gm(X[0, 0]), X[0, 0].softmax(0) * 2, rtol=0, atol=1e-15)
