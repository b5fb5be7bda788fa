"""Few queries against many keys: whatever the groups, masks, strides and threads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerance import assert_near

from attnpass.kernels import ops, reference

TILE = [64, 64, 4, 2, 1, 0, 0]
QUERIES = (1, 2, 5, 16)
KEYS = (1, 127, 129, 700)


def inputs(t, s, group, d=24, dv=40, dtype=torch.float32):
    """Two items, two key heads; keys and values are the beginning of a longer cache."""
    q = torch.randn(2, 2 * group, t, d)
    k, v = (torch.randn(2, 2, s + 9, n)[:, :, :s] for n in (d, dv))
    return [x.to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("t, s", list(itertools.product(QUERIES, KEYS)))
@pytest.mark.parametrize("group", [1, 3, 4])
def test_softmax(t, s, group, path, threads):
    q, k, v = inputs(t, s, group)
    bias = torch.randn(2, 1, t, s)
    keep = torch.rand(1, 2 * group, t, s) < 0.9
    keep[:, 0, 0] = False  # a row without a kept key
    bias[:, :, -1] = -torch.inf  # and one whose bias leaves none
    k = k + torch.linspace(-3, 3, s).view(-1, 1)  # maxima grow along the keys
    for n in (1, 3):
        threads(n)
        out, lse = ops.softmax(q, k, v, bias, keep, 0.3, False, TILE, TILE)
        kept = keep & (bias > -torch.inf)
        finite = bias.masked_fill(bias == -torch.inf, 0.0).double()
        s64 = q.double() @ k.double().repeat_interleave(group, 1).transpose(-1, -2) * 0.3 + finite
        s64 = s64.masked_fill(~kept, -torch.inf)
        want = torch.softmax(s64, -1).nan_to_num() @ v.double().repeat_interleave(group, 1)
        assert_near(out, want, terms=8)
        total = s64.logsumexp(-1)
        none = ~kept.any(-1).expand(total.shape)
        assert bool((lse[none] == -math.inf).all()) and bool((out[none] == 0).all())
        assert_near(lse[~none], total[~none], terms=8)


@pytest.mark.parametrize("h", ["sigmoid", "relu", "softplus"])
@pytest.mark.parametrize("t, s", [(1, 700), (3, 129), (16, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pointwise(h, t, s, dtype, path, threads):
    q, k, v = inputs(t, s, 3, dtype=dtype)
    tau, offset, gain = torch.rand(6) + 0.5, torch.randn(6, 1, 1), torch.randn(2, 6, t, 1)
    keep = torch.rand(2, 1, 1, s) < 0.8
    given = (q, k, v, None, keep, tau, offset, gain)
    want = reference.pointwise(*given, scale=0.3, h=h, causal=True)
    for n in (1, 2):
        threads(n)
        out = ops.pointwise(*given, 0.3, h, True, TILE, TILE)
        assert_near(out, want, terms=8)


@pytest.mark.parametrize(("t", "s"), [(4, 300), (4, 5), (4, 1), (40, 300), (40, 13), (40, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_stays_in_its_row(t, s, dtype, path):
    """Whether every logit of a row is no number, or one of them."""
    q, k, v = inputs(t, s, 2, dtype=dtype)
    q[0, 1, 2, 3] = torch.nan
    out, lse = ops.softmax(q, k, v, None, None, 0.3, False, TILE, TILE)
    assert out.isnan().any(-1).nonzero().tolist() == [[0, 1, 2]]
    assert lse.isnan().nonzero().tolist() == [[0, 1, 2]]
    q, k, v = inputs(t, s, 1, dtype=dtype)
    bias = torch.zeros(t, s)
    bias[2, s // 2] = torch.nan
    bias[3] = -torch.inf
    out, lse = ops.softmax(q, k, v, bias, None, 0.3, False, TILE, TILE)
    assert (out.isnan().any(-1) == (torch.arange(t) == 2)).all()
    assert (lse.isnan() == (torch.arange(t) == 2)).all()
    assert (out[:, :, 3] == 0).all() and (lse[:, :, 3] == -torch.inf).all()


def test_keys_of_one_stretch_may_all_be_masked(path, threads):
    """Each thread has a stretch of its own; one that keeps nothing adds nothing."""
    threads(2)
    q, k, v = (x[:1, :1] for x in inputs(2, 2000, 1))
    for keep in (torch.arange(2000) < 10, torch.arange(2000) > 1990):
        out, _ = ops.softmax(q, k, v, None, keep, 0.3, False, TILE, TILE)
        want = reference.softmax(q, k, v, None, keep, scale=0.3, causal=False, fill=-torch.inf)
        assert_near(out, want, terms=8)


@pytest.mark.parametrize("t", [4, 40])
@pytest.mark.parametrize("size", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_far_from_zero(t, size, biased, path):
    """Where one logit towers above the others its weight is 1, however large it is."""
    q, k, v = (x.requires_grad_() for x in inputs(t, 300, 2))
    bias = torch.randn(t, 300) if biased else None
    out, lse = ops.softmax(q * size, k * size, v, bias, None, 0.3, False, TILE, TILE)
    given = [x.detach().double().requires_grad_() for x in (q, k, v)]
    terms = (given[0] * size, given[1] * size, given[2], None if bias is None else bias.double())
    want = reference.softmax(*terms, None, scale=0.3, causal=False, fill=-torch.inf)
    assert_near(out, want, terms=8)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, (q, k, v), grad)
    wanted = torch.autograd.grad(want, given, grad.double())
    assert all(bool(x.isfinite().all()) for x in got)
    assert_near(got[2], wanted[2], terms=80)
    assert bool(lse.isfinite().all())
