"""Hydra against mathematics by hand."""

from __future__ import annotations

import pytest
import torch
from forms_by_hand import (
    TILES,
    B,
    D,
    H,
    S,
    T,
    attention_inputs,
    bias_of,
    check,
    hydra_by_hand,
    keep_of,
    randomised,
)
from tolerance import assert_near

from attnpass.errors import OptionError
from attnpass.forms.hydra import Hydra


@TILES
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keep", [None, (B, 1, 1, T), (1, 1, 1, T)])
def test_hydra(keep, causal, g, tile):
    keep = None if keep is None else keep_of(keep)
    module = randomised(Hydra(H, D, causal=causal, tile=tile))

    def by_hand(p, q, k, v):
        return hydra_by_hand(p, q, k, v, keep, causal=causal)

    check(module, attention_inputs(g, T, T), by_hand, (None, keep), terms=2.0)


@TILES
def test_hydra_cross(tile):
    module = randomised(Hydra(H, D, tile=tile))
    keep = keep_of((B, 1, 1, S))

    def by_hand(p, q, k, v):
        return hydra_by_hand(p, q, k, v, keep, causal=False)

    check(module, attention_inputs(2), by_hand, (None, keep), terms=2.0)


@TILES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_hydra_low_precision(dtype, tile):
    module = randomised(Hydra(H, D, tile=tile))
    q, k, v = attention_inputs(dtype=dtype)
    out = module(q, k, v)
    p = {n: x.detach().double() for n, x in module.named_parameters()}
    wide = (x.detach().double() for x in (q, k, v))
    assert out.dtype == dtype
    assert_near(out, hydra_by_hand(p, *wide, None, causal=False))


def test_hydra_parameters():
    module = Hydra(3, 5)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {"gain": (15,)}
    assert set(module.gain.tolist()) == {1.0}
    constant = Hydra(H, D, trainable=False)
    assert not list(constant.parameters())
    q, k, v = attention_inputs()
    assert torch.equal(constant(q, k, v), Hydra(H, D)(q, k, v))


@TILES
def test_hydra_of_zero_vectors_is_zero_and_has_a_gradient(tile):
    q, k, v = (torch.zeros(1, H, T, D, requires_grad=True) for _ in range(3))
    out = Hydra(H, D, tile=tile)(q, k, v)
    out.sum().backward()
    assert bool((out == 0).all())
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))


def test_hydra_takes_no_bias():
    q, k, v = attention_inputs()
    with pytest.raises(OptionError, match="expected no bias with hydra, got one"):
        Hydra(H, D)(q, k, v, bias_of((S,)))


@pytest.mark.parametrize("shape", [(S,), (T, S), (B, 1, T, S), (B, H, 1, S)])
def test_hydra_takes_no_mask_that_depends_on_the_query(shape):
    q, k, v = attention_inputs()
    with pytest.raises(OptionError, match=r"expected a key-padding mask .* got \("):
        Hydra(H, D)(q, k, v, None, keep_of(shape))
