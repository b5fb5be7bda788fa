"""Softmax attention against mathematics by hand."""

from __future__ import annotations

import math

import pytest
import torch
from forms_by_hand import (
    DV,
    LOWEST,
    B,
    D,
    H,
    S,
    T,
    attention_inputs,
    bias_of,
    check,
    draw,
    keep_of,
    softmax_by_hand,
)
from tolerance import assert_near

from attnpass import Plan, convert
from attnpass.forms.softmax import Softmax, SoftmaxWeights
from attnpass.kernels.select import has_kernel


def check_softmax(*, g=H, causal=False, fill=None, scale=0.5, dtype=torch.float32, **given):
    bias, keep = given.get("bias"), given.get("keep")
    module = Softmax(scale=scale, causal=causal, fill=fill)
    assert not list(module.parameters())
    q, k, v = attention_inputs(g, given.get("t", T), given.get("s", S), dv=given.get("dv", D))

    def by_hand(_, q, k, v):
        wide = None if bias is None else bias.double()
        return softmax_by_hand(q, k, v, wide, keep, scale=scale, causal=causal, fill=fill)

    return check(module, [q, k, v], by_hand, (bias, keep), terms=2.0)


class Masked(torch.nn.Module):
    """Self attention whose padding is masked by setting logits, or by adding to them."""

    def __init__(self, how, fill):
        super().__init__()
        self.how, self.fill = how, fill
        self.q, self.k, self.v = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, keep):
        b, t, _ = x.shape
        projections = (self.q, self.k, self.v)
        q, k, v = (f(x).view(b, t, 2, 4).transpose(1, 2) for f in projections)
        s = q @ k.transpose(-1, -2) * 0.5
        mask = keep[:, None, None, :]
        if self.how == "set":
            s = s.masked_fill(~mask, self.fill)
        else:
            s = s + torch.where(mask, 0.0, self.fill)
        return (s.softmax(-1) @ v).transpose(1, 2).reshape(b, t, 8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [None, (S,), (H, T, S), (1, H, T, S)])
@pytest.mark.parametrize("keep", [None, (B, 1, 1, S), (1, 1, T, S), (B, H, T, S)])
@pytest.mark.parametrize("fill", [None, -math.inf, LOWEST])
def test_softmax(fill, keep, bias, causal):
    check_softmax(
        causal=causal,
        fill=fill,
        bias=None if bias is None else bias_of(bias),
        keep=None if keep is None else keep_of(keep),
    )


@pytest.mark.parametrize("g", [1, 2])
def test_softmax_grouped(g):
    check_softmax(g=g, causal=True)
    check_softmax(g=g, keep=keep_of((B, 1, 1, S)), bias=bias_of((1, H, T, S)))


@pytest.mark.parametrize(("t", "s"), [(1, 1), (3, 8), (8, 3)])
def test_softmax_sizes(t, s):
    check_softmax(t=t, s=s, dv=DV)
    check_softmax(t=t, s=s, causal=True)


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        *[(f, d) for f in (None, -math.inf, LOWEST) for d in (torch.float32, torch.bfloat16)],
        (torch.finfo(torch.float64).min, torch.float32),
        (torch.finfo(torch.float64).min, torch.float64),
        (-1e9, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [None, (1, H, T, S)])
def test_softmax_of_a_fully_masked_row_is_what_the_fill_makes_it(fill, bias, dtype):
    # boolean SDPA: 0; -inf: NaN; a finite fill sets all logits alike: the mean of v
    keep = torch.ones(B, 1, T, S, dtype=torch.bool)
    keep[1, :, 2] = False
    bias = None if bias is None else bias_of(bias).to(dtype)
    q, k, v = (x.detach() for x in attention_inputs(dtype=dtype))
    out = Softmax(scale=0.5, fill=fill)(q, k, v, bias, keep)[1, :, 2]
    if fill is None:
        assert bool((out == 0).all())
    elif fill == -math.inf:
        assert bool(out.isnan().all())
    else:
        assert_near(out, v[1].double().mean(1), terms=2.0)


@pytest.mark.parametrize("how", ["set", "add"])
@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        (LOWEST, torch.float32),
        (-1e4, torch.float32),
        (-1e9, torch.float32),
        (-1e9, torch.float64),
        (-1e4, torch.float64),
    ],
)
def test_softmax_round_trip_of_a_fully_masked_item(fill, dtype, how):
    # setting -1e4 gives the mean of v; adding it leaves the logits' differences as they are
    model = Masked(how, fill).to(dtype).eval()
    x = torch.randn(2, 6, 8, generator=draw(2)).to(dtype)
    keep = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    plan = Plan.create(model, x, keep, form="softmax")
    assert len(plan.sites) == 1
    plan.round_trip = True
    converted = convert(model, plan, x, keep)
    assert_near(converted(x, keep), model(x, keep).double(), terms=2.0)


def test_softmax_drops_with_the_given_probability():
    q, k, v = attention_inputs(t=40, s=40)
    torch.manual_seed(0)
    out = Softmax(scale=0.5, dropout=0.5)(q, k, torch.ones_like(v))
    assert out.std() > 0.05
    assert (out.mean() - 1).abs() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_softmax_alone(dtype):
    s = torch.randn(B, H, T, S).to(dtype)
    got = SoftmaxWeights()(s)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert_near(got, s.double().softmax(-1))


LONG = 150
"""From 128 tokens on the kernel runs, where there is one."""


@pytest.mark.parametrize("fill", [None, -1e4, -math.inf])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["none", "columns", "rows", "bias"])
def test_long_sequences_are_exact(masked, causal, fill):
    """Gradients, too; rows without a kept key are as ``fill`` says."""
    given = {"t": LONG, "s": LONG, "g": 2, "causal": causal, "fill": fill}
    if masked == "columns":
        given["keep"] = keep_of((B, 1, 1, LONG))
    if masked == "rows":
        given["keep"] = keep_of((B, 1, LONG, LONG))
    if masked == "bias":
        given["bias"] = bias_of((H, LONG, LONG))
    check_softmax(**given)


@pytest.mark.parametrize("fill", [None, -1e4, -math.inf])
def test_long_rows_without_a_kept_key(fill):
    q, k, v = attention_inputs(2, LONG, LONG)
    keep = keep_of((B, 1, LONG, LONG))
    keep[:, :, 7] = False
    out = Softmax(scale=0.5, fill=fill)(q, k, v, None, keep)
    want = softmax_by_hand(
        *(x.double() for x in (q, k, v)), None, keep, scale=0.5, causal=False, fill=fill
    )
    assert_near(out, want, terms=2.0)


def test_a_kernel_serves_long_sequences_only(monkeypatch):
    seen = []
    by_kernel = Softmax._by_kernel
    monkeypatch.setattr(
        Softmax, "_by_kernel", lambda *a: seen.append(a[1].shape[2]) or by_kernel(*a)
    )
    for t in (5, LONG):
        Softmax(scale=0.5)(*attention_inputs(2, t, t))
    Softmax(scale=0.5, dropout=0.1)(*attention_inputs(2, LONG, LONG))
    Softmax(scale=-0.5)(*attention_inputs(2, LONG, LONG))
    assert seen == ([LONG] if has_kernel("pointwise") else [])
