"""The options of every form, and the module that a form puts at a site."""

from __future__ import annotations

import math

import pytest
import torch
from forms_by_hand import (
    FUSED,
    LOWEST,
    WIDTH,
    B,
    D,
    H,
    S,
    T,
    attention_inputs,
    check,
    draw,
    hydra_by_hand,
    keep_of,
    pointwise_by_hand,
    randomised,
    site,
    skipat_by_hand,
    softmax_by_hand,
)
from tolerance import assert_near

from attnpass import forms
from attnpass.errors import OptionError
from attnpass.forms.catalogue import build, default_length
from attnpass.kernels.cpu import pointwise_launch
from attnpass.site import FORMS


def test_unknown_form():
    with pytest.raises(OptionError, match="expected a form of softmax, .*, got 'performer'"):
        build("performer", site())


@pytest.mark.parametrize("form", FORMS)
def test_unknown_option(form):
    with pytest.raises(OptionError, match=rf"expected options of form {form} .*, got typo"):
        build(form, site(), {"typo": 1})


def test_options_of_another_form_are_unknown():
    for form, option in (("softmax", "L"), ("sigmoid", "alpha"), ("sigmoid", "h"), ("hydra", "r")):
        with pytest.raises(OptionError, match=f"got {option}"):
            build(form, site(), {option: 1})


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("sigmoid", {"approximate": "fast"}),
        ("sigmoid", {"L": 0}),
        ("sigmoid", {"L": ""}),
        ("relu", {"L": 0.0}),
        ("relu", {"L": -3}),
        ("relu", {"h": "swish"}),
        ("relu", {"alpha": "x"}),
        ("relu", {"alpha": math.nan}),
        ("skipat", {"r": -1}),
        ("skipat", {"r": "x"}),
        ("skipat", {"kernel": 2}),
        ("skipat", {"r": 1.0, "kernel": 3.0}),
    ],
    ids=str,
)
def test_values_out_of_range(form, options):
    with pytest.raises(OptionError, match="expected .* got "):
        build(form, site(), options)


def test_the_approximate_sigmoid_is_the_same_module_but_for_the_operator(
    monkeypatch, through_python
):
    given = []
    spy = spied(given, pointwise_launch.pointwise)
    monkeypatch.setattr(pointwise_launch, "pointwise", spy)
    at = site(kv_heads=H)
    q, k, v = torch.randn(3, 2, H, 40, D).bfloat16()
    outs = [build("sigmoid", at, {"approximate": x})(q, k, v) for x in ("none", "tanh")]
    assert given == ["sigmoid", "sigmoid_tanh"]
    # a CPU computes both exactly
    assert torch.equal(*outs)


def spied(given, right):
    def spy(call):
        given.append(call.h)
        return right(call)

    return spy


@pytest.mark.parametrize(
    ("mask", "length"),
    [
        ((), "keys"),
        (("window",), "visible"),
        (("arbitrary",), "visible"),
        (("causal",), "visible"),
        (("padding",), "visible"),
        (("causal", "padding"), "visible"),
        (("padding", "arbitrary"), "visible"),
    ],
)
@pytest.mark.parametrize("form", ["sigmoid", "relu"])
def test_default_length(form, mask, length):
    at = site(mask=frozenset(mask))
    assert default_length(at) == length
    assert build(form, at).length == length
    assert build(form, at, {"L": "keys"}).length == "keys"
    assert build(form, at, {"L": 7}).length == 7


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["sigmoid", "relu"])
def test_build_pointwise(form, causal):
    at = site(mask=frozenset({"causal"} if causal else ()))
    module = randomised(build(form, at))
    length = "visible" if causal else "keys"

    def by_hand(p, q, k, v):
        return pointwise_by_hand(
            p, q, k, v, None, None, h=form, scale=0.3, causal=causal, length=length, alpha=1.0
        )

    check(module, attention_inputs(2), by_hand, terms=2.0)


def test_build_relu_with_all_options():
    module = randomised(build("relu", site(), {"h": "gelu", "alpha": 0.5, "L": 11}))

    def by_hand(p, q, k, v):
        return pointwise_by_hand(
            p, q, k, v, None, None, h="gelu", scale=0.3, causal=False, length=11, alpha=0.5
        )

    check(module, attention_inputs(2), by_hand, terms=2.0)


@pytest.mark.parametrize("form", ["sigmoid", "relu", "softmax"])
def test_build_where_the_scale_was_folded_into_q(form):
    q, k, v = attention_inputs(2)
    assert_near(
        build(form, site(scale=None))(q, k, v), build(form, site(scale=1.0))(q, k, v).double()
    )


def test_build_softmax():
    at = site(mask=frozenset({"causal", "padding"}), fill=LOWEST, dropout=0.0)
    keep = keep_of((B, 1, 1, S))
    module = build("softmax", at)

    def by_hand(_, q, k, v):
        return softmax_by_hand(q, k, v, None, keep, scale=0.3, causal=True, fill=LOWEST)

    check(module, attention_inputs(2), by_hand, (None, keep), terms=2.0)
    assert build("softmax", site(dropout=0.25)).dropout == 0.25


@pytest.mark.parametrize("causal", [False, True])
def test_build_hydra(causal):
    module = randomised(build("hydra", site(mask=frozenset({"causal"} if causal else ()))))

    def by_hand(p, q, k, v):
        return hydra_by_hand(p, q, k, v, None, causal=causal)

    check(module, attention_inputs(2, T, T), by_hand, terms=2.0)


@pytest.mark.parametrize(
    ("changes", "grid", "prefix", "causal"),
    [
        ({"grid": (2, 4), "prefix": 1}, (2, 4), 1, False),
        ({"mask": frozenset({"causal"})}, None, 0, True),
        ({"mask": frozenset({"padding"})}, None, 0, False),
    ],
)
def test_build_skipat(changes, grid, prefix, causal):
    module = randomised(build("skipat", site(**changes), {"r": 2.0, "kernel": 3}))
    z = torch.randn(B, 8 + prefix, WIDTH, generator=draw()).requires_grad_()

    def by_hand(p, z):
        return skipat_by_hand(p, z, None, kernel=3, grid=grid, prefix=prefix, causal=causal)

    check(module, [z], by_hand, terms=4.0)


def test_build_skipat_is_the_identity_by_default():
    z = torch.randn(B, 5, WIDTH)
    assert torch.equal(build("skipat", site())(z), z)


@pytest.mark.parametrize("form", FORMS)
def test_build_without_parameters(form):
    assert not list(build(form, site(), trainable=False).parameters())


@pytest.mark.parametrize("form", ["sigmoid", "relu"])
def test_build_passes_the_measured_tiles(form):
    tiles = {"a class": FUSED}
    assert build(form, site(), tiles=tiles).tiles is tiles


def test_options_have_a_row_for_every_form():
    assert tuple(forms.OPTIONS) == FORMS
