"""The pointwise forms against mathematics by hand."""

from __future__ import annotations

import math

import pytest
import torch
from forms_by_hand import (
    ALL_H,
    DV,
    TILES,
    B,
    D,
    H,
    S,
    T,
    attention_inputs,
    bias_of,
    check,
    keep_of,
    pointwise_by_hand,
    randomised,
)
from tolerance import assert_near

from attnpass.errors import OptionError
from attnpass.forms.pointwise import Pointwise, Weights


def check_pointwise(
    *, h="sigmoid", g=H, causal=False, length="keys", alpha=1.0, tile=None, scale=0.5, **given
):
    bias, keep = given.get("bias"), given.get("keep")
    t, s = given.get("t", T), given.get("s", S)
    module = randomised(
        Pointwise(H, g, D, h=h, scale=scale, causal=causal, length=length, alpha=alpha, tile=tile)
    )
    q, k, v = attention_inputs(g, t, s, dv=given.get("dv", D))

    def by_hand(p, q, k, v):
        wide = None if bias is None else bias.double()
        options = {"h": h, "scale": D**-0.5 if scale is None else scale, "causal": causal}
        return pointwise_by_hand(p, q, k, v, wide, keep, length=length, alpha=alpha, **options)

    return check(module, [q, k, v], by_hand, (bias, keep), terms=2.0)


@TILES
@pytest.mark.parametrize("h", ALL_H)
def test_pointwise(h, tile):
    check_pointwise(h=h, tile=tile)


@TILES
@pytest.mark.parametrize("length", ["keys", "visible", 3, 197.5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("h", ["sigmoid", "relu"])
def test_pointwise_length(h, masked, causal, length, tile):
    keep = keep_of((B, 1, 1, S)) if masked else None
    check_pointwise(h=h, length=length, causal=causal, keep=keep, tile=tile)


@pytest.mark.parametrize("t", [3, 11])
def test_pointwise_visible_length_of_causal_cross_lengths(t):
    check_pointwise(h="relu", length="visible", causal=True, t=t)


@pytest.mark.parametrize(
    "shape",
    [(S,), (T, S), (B, 1, 1, S), (1, 1, T, S), (B, H, T, S), (1, H, 1, S), (B, 1, T, 1)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_pointwise_visible_length_of_every_keep_shape(causal, shape):
    check_pointwise(h="relu", length="visible", causal=causal, keep=keep_of(shape))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("h", ["relu", "gelu"])
def test_pointwise_alpha(h, alpha):
    check_pointwise(h=h, alpha=alpha)
    check_pointwise(h=h, alpha=alpha, length="visible", causal=True)


def test_sigmoid_ignores_alpha():
    q, k, v = attention_inputs()
    one, two = (Pointwise(H, H, D, h="sigmoid", alpha=a) for a in (0.0, 2.0))
    assert torch.equal(one(q, k, v), two(q, k, v))


@TILES
@pytest.mark.parametrize("g", [1, 2, 4])
def test_pointwise_grouped(g, tile):
    check_pointwise(h="gelu", g=g, tile=tile)


@TILES
@pytest.mark.parametrize("shape", [(S,), (H, T, S), (1, H, T, S), (B, 1, 1, S)])
def test_pointwise_bias(shape, tile):
    check_pointwise(h="sigmoid", bias=bias_of(shape), tile=tile)
    check_pointwise(h="relu", bias=bias_of(shape), causal=True, keep=keep_of((B, 1, 1, S)))


@TILES
def test_pointwise_value_dim_and_default_scale(tile):
    check_pointwise(h="softplus", dv=DV, scale=None, tile=tile)


@TILES
def test_pointwise_bias_receives_its_gradient(tile):
    module = randomised(Pointwise(H, H, D, h="gelu", scale=0.5, tile=tile))
    q, k, v = attention_inputs()
    bias = bias_of((1, H, T, S)).requires_grad_()

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, q, k, v, bias):
            return self.inner(q, k, v, bias)

    def by_hand(p, q, k, v, bias):
        p = {n.removeprefix("inner."): x for n, x in p.items()}
        return pointwise_by_hand(
            p, q, k, v, bias, None, h="gelu", scale=0.5, causal=False, length="keys", alpha=1.0
        )

    check(Last(), [q, k, v, bias], by_hand, terms=2.0)


@pytest.mark.parametrize("h", ALL_H)
def test_pointwise_parameters(h):
    module = Pointwise(4, 2, 6, h=h)
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    expected = {"b": (4,), "gain": (4,), "k0": (2, 6)}
    # a temperature is redundant with the gain where h is homogeneous
    if h not in ("relu", "relu2", "identity"):
        expected["log_tau"] = (4,)
    assert shapes == expected
    starts = {n: set(p.flatten().tolist()) for n, p in module.named_parameters()}
    assert starts == {n: {1.0} if n == "gain" else {0.0} for n in expected}


@TILES
@pytest.mark.parametrize("h", ALL_H)
def test_pointwise_without_parameters_equals_their_start(h, tile):
    q, k, v = attention_inputs()
    options = {"h": h, "causal": True, "length": "visible", "tile": tile}
    constant = Pointwise(H, H, D, trainable=False, **options)
    assert not list(constant.parameters())
    assert_near(constant(q, k, v), Pointwise(H, H, D, **options)(q, k, v).double())


def test_temperature_is_positive_whatever_the_parameter():
    module = Pointwise(H, H, D, h="sigmoid", scale=1.0)
    module.log_tau.data.fill_(-3.0)
    q, k, v = attention_inputs()
    sharp = Pointwise(H, H, D, h="sigmoid", scale=math.exp(-3.0))
    assert_near(module(q, k, v), sharp(q, k, v).double())


@TILES
@pytest.mark.parametrize("h", ALL_H)
@pytest.mark.parametrize("length", ["keys", "visible", 5])
def test_pointwise_of_no_keys_is_zero(length, h, tile):
    module = Pointwise(H, H, D, h=h, length=length, tile=tile)
    q, k, v = attention_inputs(s=0)
    out = module(q, k, v)
    assert out.shape == (B, H, T, D)
    assert bool((out == 0).all())


@pytest.mark.parametrize("h", ALL_H)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pointwise_low_precision(dtype, h):
    # q k^T, h and the sums in float32; the C++ kernel rounds bfloat16 weights, as eager does
    module = Pointwise(H, H, D, h=h, scale=0.5, length="visible", causal=True)
    module.gain.data.fill_(1.3)
    q, k, v = attention_inputs(dtype=dtype)
    out = module(q, k, v)
    p = {n: x.detach().double() for n, x in module.named_parameters()}
    want = pointwise_by_hand(
        p,
        *(x.detach().double() for x in (q, k, v)),
        None,
        None,
        h=h,
        scale=0.5,
        causal=True,
        length="visible",
        alpha=1.0,
    )
    assert out.dtype == dtype
    assert_near(out, want, compute=dtype if dtype == torch.bfloat16 else None)


def test_the_sum_over_keys_may_exceed_float16_if_the_mean_does_not():
    # 600 keys of weight 8 and value 16: the sum 76800 overflows float16, the result 128 does not
    q = torch.full((1, 1, 1, 4), 2.0, dtype=torch.float16)
    k, v = torch.ones(2, 1, 1, 600, 4, dtype=torch.float16)
    out = Pointwise(1, 1, 4, h="relu", scale=1.0)(q, k, v * 16)
    assert_near(out, torch.full((1, 1, 1, 4), 128.0, dtype=torch.float64))


@pytest.mark.parametrize("h", ["swish", "", "softmax", "Sigmoid"])
def test_unknown_h(h):
    with pytest.raises(OptionError, match=rf"expected h in .*'sigmoid'.*, got {h!r}"):
        Pointwise(H, H, D, h=h)


@pytest.mark.parametrize("length", ["max", "", 0, -1, 0.0, math.nan, None, [3]])
def test_unknown_length(length):
    with pytest.raises(OptionError, match="expected L 'keys', 'visible' or a number from"):
        Pointwise(H, H, D, h="relu", length=length)


@pytest.mark.parametrize("h", ALL_H)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_of_given_logits(causal, h):
    weights = randomised(Weights(H, H, D, h=h, causal=causal, length="visible", centred=False))
    whole = Pointwise(H, H, D, h=h, scale=0.5, causal=causal, length="visible", centred=False)
    whole.load_state_dict(weights.state_dict())
    q, k, v = (x.detach() for x in attention_inputs())
    keep = keep_of((B, 1, 1, S))
    logits = (0.5 * q @ k.transpose(2, 3)).masked_fill(~keep, -math.inf)
    for s in (logits, 0.5 * q @ k.transpose(2, 3)):
        assert_near(weights(s, keep) @ v, whole(q, k, v, None, keep).double(), terms=2.0)
    assert weights(logits.bfloat16(), keep).dtype == torch.float32
