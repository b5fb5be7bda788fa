"""What must not change a result: padding, the rest of the batch, and, if causal, the future."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import assert_near

from attnpass.forms.hydra import Hydra
from attnpass.forms.pointwise import Pointwise
from attnpass.forms.skipat import SkipAt
from attnpass.forms.softmax import Softmax
from attnpass.kernels.tile import Tile

B, H, G, D, WIDTH = 2, 4, 2, 6, 8
ALL_H = ("sigmoid", "relu", "relu2", "gelu", "softplus", "identity", "relu6")
TILES = {"aten": Tile("aten"), "fused": Tile(block_m=4, block_n=3)}
LOWEST = torch.finfo(torch.float32).min


def draw(seed):
    return torch.Generator().manual_seed(seed)


def randomised(module):
    g = draw(7)
    for x in module.parameters():
        x.data = x.data + 0.3 * torch.randn(x.shape, generator=g)
    return module


# name -> causal -> module with random parameters
ATTENTION = {
    "softmax": lambda causal: Softmax(scale=0.4, causal=causal),
    "softmax -inf": lambda causal: Softmax(scale=0.4, causal=causal, fill=-math.inf),
    "softmax finite": lambda causal: Softmax(scale=0.4, causal=causal, fill=LOWEST),
}
for tile_name, tile in TILES.items():
    for h in ALL_H:
        ATTENTION[f"{h} {tile_name}"] = lambda causal, h=h, tile=tile: Pointwise(
            H, G, D, h=h, scale=0.4, causal=causal, length="visible", tile=tile
        )
    for h in ("sigmoid", "relu"):
        ATTENTION[f"{h} L=9 {tile_name}"] = lambda causal, h=h, tile=tile: Pointwise(
            H, G, D, h=h, scale=0.4, causal=causal, length=9, tile=tile
        )
    ATTENTION[f"hydra {tile_name}"] = lambda causal, tile=tile: Hydra(
        H, D, causal=causal, tile=tile
    )
HARD = [n for n in ATTENTION if "softmax" not in n]

SKIPAT = {
    "r 0": {"r": 0.0},
    "kernel 1": {"r": 0.5, "kernel": 1},
    "kernel 3": {"r": 1.0, "kernel": 3},
    "kernel 5": {"r": 2.0, "kernel": 5},
}

FORM = pytest.mark.parametrize("name", ATTENTION)
CAUSAL = pytest.mark.parametrize("causal", [False, True])
SKIP = pytest.mark.parametrize("name", SKIPAT)


def module_of(name, causal):
    return randomised(ATTENTION[name](causal))


def skipat_of(name, causal=False, **more):
    return randomised(SkipAt(WIDTH, causal=causal, **SKIPAT[name], **more))


def attention_inputs(t, seed=0, size=1.0):
    g = draw(seed)
    shapes = ((B, H, t, D), (B, G, t, D), (B, G, t, D))
    return [size * torch.randn(s, generator=g) for s in shapes]


def longer(x, more, axis):
    return torch.cat([x, more], axis)


def same(got, want):
    assert bool(want.abs().max() > 1e-3), "nothing to compare"
    assert_near(got, want.double())


def gradient(out, x):
    return torch.autograd.grad(out, x, torch.ones_like(out) * torch.arange(1.0, D + 1))[0]


# --- the amount of padding --------------------------------------------------------------------


@FORM
@CAUSAL
@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_padding_does_not_change_a_result(name, causal, size):
    # item 0 keeps 5 tokens and item 1 keeps 3; padding holds zeros, noise or large numbers
    module = module_of(name, causal)
    length = torch.tensor([5, 3])
    short = attention_inputs(5)
    results = []
    for extra in (0, 1, 6):
        junk = attention_inputs(extra, seed=extra + 1, size=size)
        q, k, v = (longer(a, b, 2) for a, b in zip(short, junk, strict=True))
        v = v.requires_grad_()
        keep = (torch.arange(5 + extra) < length[:, None])[:, None, None, :]
        out = module(q, k, v, None, keep)
        rows = torch.cat([out[0, :, :5], out[1, :, :3]], 1)
        grad = gradient(rows, v)
        assert bool((grad[0, :, 5:] == 0).all())
        assert bool((grad[1, :, 3:] == 0).all())
        results.append((rows, grad[:, :, :5]))
    for rows, grad in results[1:]:
        same(rows, results[0][0])
        same(grad, results[0][1])


@pytest.mark.parametrize("h", ["sigmoid", "relu", "gelu"])
def test_a_constant_length_is_not_invariant(h):
    # the control: with L = keys the same test must fail, or it shows nothing
    module = randomised(Pointwise(H, G, D, h=h, scale=0.4, length="keys"))
    results = []
    for extra in (0, 6):
        q, k, v = attention_inputs(5)
        k, v = (longer(x, x.new_zeros(B, G, extra, D), 2) for x in (k, v))
        keep = (torch.arange(5 + extra) < 5).view(1, 1, 1, -1)
        results.append(module(q, k, v, None, keep))
    assert not torch.allclose(*results, rtol=1e-2)


@SKIP
@CAUSAL
@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_padding_does_not_change_skipat(name, causal, size):
    module = skipat_of(name, causal)
    length = torch.tensor([7, 4])
    short = torch.randn(B, 7, WIDTH, generator=draw(0))
    results = []
    for extra in (0, 1, 6):
        junk = size * torch.randn(B, extra, WIDTH, generator=draw(extra + 1))
        keep = (torch.arange(7 + extra) < length[:, None])[:, None, None, :]
        out = module(longer(short, junk, 1), keep)
        results.append(torch.cat([out[0, :7], out[1, :4]]))
    for rows in results[1:]:
        same(rows, results[0])


@SKIP
def test_left_padding_does_not_change_skipat(name):
    module = skipat_of(name)
    short = torch.randn(B, 7, WIDTH, generator=draw(0))
    keep = torch.arange(-4, 7).view(1, 1, 1, -1) >= 0
    junk = 1e3 * torch.randn(B, 4, WIDTH, generator=draw(1))
    got = module(longer(junk, short, 1), keep)[:, 4:]
    same(got, module(short, keep[..., 4:]))
    same(got, module(short))


# --- the other items of the batch -------------------------------------------------------------


@FORM
@CAUSAL
@pytest.mark.parametrize("masked", [False, True])
def test_batch_mates_do_not_change_a_result(name, causal, masked):
    module = module_of(name, causal)
    inputs = attention_inputs(7)
    keep = None
    if masked:
        keep = torch.rand(B, 1, 1, 7, generator=draw(3)) < 0.6
        keep[..., 0] = True
    want = module(*inputs, None, keep)[:1]
    for mate in (1e3, 0.0, math.nan):
        for x, y in zip(inputs, attention_inputs(7, seed=5), strict=True):
            x[1] = y[1] * mate
        if masked:
            keep[1] = ~keep[1]
        same(module(*inputs, None, keep)[:1], want)
    alone = [x[:1] for x in inputs]
    same(module(*alone, None, None if keep is None else keep[:1]), want)


@SKIP
@CAUSAL
@pytest.mark.parametrize("masked", [False, True])
def test_batch_mates_do_not_change_skipat(name, causal, masked):
    module = skipat_of(name, causal)
    z = torch.randn(B, 7, WIDTH, generator=draw(0))
    keep = torch.rand(B, 1, 1, 7, generator=draw(3)) < 0.6 if masked else None
    want = module(z, keep)[:1]
    for mate in (1e3, 0.0, math.nan):
        z[1] = mate * torch.randn(7, WIDTH, generator=draw(5))
        if masked:
            keep[1] = ~keep[1]
        same(module(z, keep)[:1], want)
    same(module(z[:1], None if keep is None else keep[:1]), want)


# --- the future -------------------------------------------------------------------------------


@FORM
@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_later_token_does_not_change_an_earlier_row(name, masked, size):
    module = module_of(name, True)
    keep = None
    if masked:
        keep = torch.rand(B, 1, 1, 9, generator=draw(3)) < 0.6
        keep[..., 0] = True
    inputs = attention_inputs(9)
    want = module(*inputs, None, keep)
    for t in range(8):
        # token t + 1 alone
        changed = [x.clone() for x in inputs]
        for x, y in zip(changed, attention_inputs(9, seed=5, size=size), strict=True):
            x[:, :, t + 1] = y[:, :, t + 1]
        got = module(*changed, None, keep)
        same(got[:, :, : t + 1], want[:, :, : t + 1])
        assert not torch.equal(got[:, :, t + 1], want[:, :, t + 1])


@FORM
def test_a_row_has_no_gradient_from_a_later_token(name):
    module = module_of(name, True)
    inputs = [x.requires_grad_() for x in attention_inputs(9)]
    out = module(*inputs)
    for grad in torch.autograd.grad(out[:, :, :4].square().sum(), inputs):
        assert bool((grad[:, :, 4:] == 0).all())
        assert bool((grad[:, :, :4] != 0).any())


@FORM
def test_a_causal_row_is_the_last_row_of_its_prefix(name):
    # what generation computes token by token
    module = module_of(name, True)
    inputs = attention_inputs(7)
    whole = module(*inputs)
    for t in range(1, 8):
        same(module(*(x[:, :, :t] for x in inputs)), whole[:, :, :t])


@SKIP
@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_later_token_does_not_change_an_earlier_row_of_skipat(name, masked, size):
    # the convolution and the mean of the channel attention see tokens <= t only
    module = skipat_of(name, True)
    keep = torch.rand(B, 1, 1, 9, generator=draw(3)) < 0.6 if masked else None
    z = torch.randn(B, 9, WIDTH, generator=draw(0))
    want = module(z, keep)
    for t in range(8):
        changed = z.clone()
        changed[:, t + 1] = size * torch.randn(B, WIDTH, generator=draw(5))
        got = module(changed, keep)
        same(got[:, : t + 1], want[:, : t + 1])
        if not masked:
            assert not torch.equal(got[:, t + 1], want[:, t + 1])
    same(module(z[:, :4], None if keep is None else keep[..., :4]), want[:, :4])


@pytest.mark.parametrize("name", ["kernel 3", "kernel 5"])
def test_a_skipat_that_is_not_causal_does_see_later_tokens(name):
    # the control
    module = skipat_of(name, False)
    z = torch.randn(1, 9, WIDTH, generator=draw(0))
    changed = z.clone()
    changed[:, 8] += 1
    assert not torch.equal(module(z)[:, 7], module(changed)[:, 7])
    assert not torch.equal(module(z)[:, 0], module(changed)[:, 0])


# --- rows that may attend to nothing ----------------------------------------------------------


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@CAUSAL
def test_a_fully_masked_item_is_exactly_zero(name, causal, dtype):
    module = module_of(name, causal)
    inputs = [x.to(dtype).requires_grad_() for x in attention_inputs(7)]
    keep = torch.ones(B, 1, 1, 7, dtype=torch.bool)
    keep[1] = False
    out = module(*inputs, None, keep)
    assert bool((out[1] == 0).all())
    assert bool((out[0] != 0).any())
    assert bool(out.isfinite().all())
    out.sum().backward()
    for x in (*inputs, *module.parameters()):
        assert bool(x.grad.isfinite().all())
    assert bool((inputs[2].grad[1] == 0).all())


@pytest.mark.parametrize("name", [n for n in HARD if "hydra" not in n])
def test_a_fully_masked_row_is_exactly_zero(name):
    module = module_of(name, False)
    q, k, v = attention_inputs(7)
    keep = torch.rand(B, H, 7, 7, generator=draw(3)) < 0.6
    keep[..., 0] = True
    keep[0, 1, 4] = False
    out = module(q, k, v, None, keep)
    assert bool((out[0, 1, 4] == 0).all())
    assert bool((out[0, 1, :4] != 0).any(-1).all())
    # the same row masked by a bias of -inf, without and with other keeps
    bias = torch.zeros(1, H, 7, 7)
    bias[0, 2, 5] = -math.inf
    out = module(q, k, v, bias, keep)
    assert bool((out[0, 1, 4] == 0).all())
    assert bool((out[:, 2, 5] == 0).all())
    assert bool(out.isfinite().all())


def test_left_padding_of_a_causal_site_leaves_empty_rows_zero():
    # the first two rows of a left-padded causal item may attend to nothing
    keep = (torch.arange(7) >= 2).view(1, 1, 1, 7)
    for name in HARD:
        out = module_of(name, True)(*attention_inputs(7), None, keep)
        assert bool((out[:, :, :2] == 0).all()), name
        assert bool((out[:, :, 2:] != 0).any()), name


@pytest.mark.parametrize(("fill", "row"), [(None, 0.0), (-math.inf, math.nan), (LOWEST, 3.0)])
@CAUSAL
def test_softmax_of_a_fully_masked_item_follows_the_fill(causal, fill, row):
    # boolean masks give 0, -inf NaN; a finite fill gives the mean of v, of all keys
    q, k, v = attention_inputs(7)
    v = torch.full_like(v, 3.0)
    keep = torch.ones(B, 1, 1, 7, dtype=torch.bool)
    keep[1] = False
    out = Softmax(scale=0.4, causal=causal, fill=fill)(q, k, v, None, keep)
    assert_near(out[1], torch.full((H, 7, D), row, dtype=torch.float64))
    assert_near(out[0], torch.full((H, 7, D), 3.0, dtype=torch.float64))


@SKIP
@CAUSAL
def test_a_fully_masked_item_of_skipat_is_finite(name, causal):
    module = skipat_of(name, causal)
    z = torch.randn(B, 7, WIDTH, generator=draw(0)).requires_grad_()
    keep = torch.ones(B, 1, 1, 7, dtype=torch.bool)
    keep[1] = False
    out = module(z, keep)
    assert bool(out.isfinite().all())
    same(out[:1], module(z)[:1])
    out.sum().backward()
    assert bool(z.grad.isfinite().all())
