"""Attention cases: a module, its inputs, and the record that the matcher must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.masked import (
    alibi_baddbmm,
    bias_then_scale,
    buffer_mask,
    causal_additive,
    causal_fill,
    causal_pad,
    causal_pad_or,
    causal_sdpa,
    causal_sdpa_mask,
    causal_triu,
    causal_where,
    clamped,
    pad_additive,
    pad_additive_left,
    pad_bias_in_place,
    pad_bmm,
    pad_in_place,
    pad_masked_fill,
    pad_one_minus,
    pad_sdpa_bool,
    pad_sdpa_float,
    pad_where,
    pad_where_inverted,
    position_bias,
    small_fill,
    window,
)
from models.modules import (
    Attention,
    Bare,
    ClassAttention,
    Encoder,
    KeysPermuted,
    Multihead,
    Sequence,
    SingleHead,
    TokensSecond,
    Windowed,
)
from models.sizes import DISTINCT, INF, MIN, Sizes
from models.spellings import (
    baddbmm_empty,
    bmm_flat,
    div_after,
    div_in_place,
    dropped,
    einsum,
    functional,
    keys_first,
    layer_softmax,
    max_subtracted,
    mul_after,
    mul_before_left,
    prescaled,
    scaled_both,
    sdpa,
    sdpa_flat,
    sdpa_keywords,
    temperature,
    tensor_scale,
    transposed_output,
    upcast,
    upcast_float,
    upcast_operands,
)


@dataclass(frozen=True, eq=False)
class Case:
    """One spelling: how to build it, what it takes, the record that must come out.

    ``needs``: ``x``, ``mask``, ``context`` or ``bare``. ``expect``: fields of the record.
    """

    name: str
    build: Callable[[Sizes], nn.Module]
    needs: str = "x"
    expect: dict[str, Any] = field(default_factory=dict)
    path: str = "root"
    even: bool = False

    def __str__(self) -> str:
        return self.name

    def model(self, sizes: Sizes = DISTINCT) -> nn.Module:
        torch.manual_seed(1)
        return self.build(sizes).eval()

    def inputs(self, sizes: Sizes = DISTINCT, dtype=torch.float32, empty=False, batch=None):
        """Arguments; ``empty`` masks every key of the last item."""
        generator = torch.Generator().manual_seed(2)
        B, T = batch or sizes.B, sizes.T + (sizes.T % 2 if self.even else 0)
        new = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
        if self.needs == "bare":
            return tuple(new(B, sizes.H, T, sizes.d) for _ in range(3))
        x = new(B, T, sizes.D)
        if self.needs == "context":
            return x, None, new(B, sizes.S, sizes.D)
        if self.needs == "sequence":
            return (x[0],)
        if self.needs == "mask":
            mask = torch.ones(B, T, dtype=torch.bool)
            mask[-1, 2:] = False
            if empty:
                mask[-1] = False
            return x, mask
        return (x,)

    def expected(self, sizes: Sizes = DISTINCT) -> dict[str, Any]:
        out: dict[str, Any] = {
            "name": self.path,
            "kind": "self",
            "heads": sizes.H,
            "kv_heads": sizes.H,
            "head_dim": sizes.d,
            "value_dim": sizes.d,
            "scale": sizes.d**-0.5,
            "mask": frozenset(),
            "fill": None,
            "bias": False,
            "dropout": 0.0,
        }
        if self.expect.get("heads") == 1:
            out |= {"head_dim": sizes.D, "value_dim": sizes.D, "scale": sizes.D**-0.5}
        return out | self.expect


def _case(
    core, needs="x", name="", module=Attention, build=None, path="root", even=False, **expect
):
    extra = {k: expect.pop(k) for k in ("packed", "groups", "repeat") if k in expect}
    build = build or (lambda sizes: module(core, sizes, **extra))
    return Case(name or core.__name__, build, needs, expect, path, even)


PADDED = frozenset({"padding"})

CAUSAL = frozenset({"causal"})

BOTH = frozenset({"causal", "padding"})

PLAIN = [
    *(
        _case(core)
        for core in (
            mul_after,
            mul_before_left,
            div_after,
            div_in_place,
            functional,
            layer_softmax,
            upcast,
            upcast_float,
            upcast_operands,
            max_subtracted,
            dropped,
            einsum,
            transposed_output,
            keys_first,
            sdpa,
            sdpa_keywords,
            sdpa_flat,
            bmm_flat,
            baddbmm_empty,
        )
    ),
    _case(mul_after, name="qkv-unbind", packed="unbind"),
    _case(mul_after, name="qkv-chunk", packed="chunk"),
    _case(sdpa, name="sdpa-unbind", packed="unbind"),
    _case(None, name="tokens-second", module=TokensSecond),
    _case(None, name="keys-permuted", module=KeysPermuted),
    _case(None, name="mha", build=Multihead, path="mha", scale=1.0),
    _case(
        None,
        name="mha-no-weights",
        build=lambda z: Multihead(z, need_weights=False),
        path="mha",
    ),
    _case(
        None,
        name="mha-tokens-first",
        build=lambda z: Multihead(z, batch_first=False, need_weights=False),
        path="mha",
    ),
    _case(None, name="encoder-layer", build=Encoder, path="layer.self_attn"),
    _case(
        None,
        name="encoder-layer-norm-first",
        build=lambda z: Encoder(z, norm_first=True, activation="gelu"),
        path="layer.self_attn",
    ),
]
"""Spellings of the same thing: their records are equal."""

PADDING = [
    _case(core, "mask", mask=PADDED, fill=MIN)
    for core in (
        pad_additive,
        pad_additive_left,
        pad_one_minus,
        pad_masked_fill,
        pad_where,
        pad_where_inverted,
        pad_in_place,
        pad_bias_in_place,
    )
]
"""Spellings of the same padding mask: their records are equal."""

CAUSALS = [
    _case(core, mask=CAUSAL, fill=INF)
    for core in (causal_fill, causal_where, causal_additive, causal_triu)
]
"""Spellings of the same causal mask: their records are equal."""

OTHERS = [
    _case(prescaled, scale=1.0),
    _case(scaled_both, scale=1.0),
    _case(tensor_scale, scale=None),
    _case(temperature, scale=None),
    _case(mul_after, "context", name="cross", kind="cross"),
    _case(sdpa, "context", name="cross-sdpa", kind="cross"),
    _case(None, "context", name="cross-mha", build=Multihead, path="mha", kind="cross", scale=1.0),
    _case(mul_after, name="grouped-expand", groups=2, kv_heads=2),
    _case(sdpa, name="grouped-expand-sdpa", groups=2, kv_heads=2),
    _case(mul_after, name="grouped-interleave", groups=2, repeat="interleave", kv_heads=2),
    _case(
        lambda q, k, v, m, mod: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        name="grouped-gqa",
        groups=2,
        repeat="gqa",
        kv_heads=2,
    ),
    _case(mul_after, name="multi-query", groups=1, repeat="broadcast", kv_heads=1),
    _case(causal_sdpa, mask=CAUSAL),
    _case(causal_sdpa_mask, mask=CAUSAL),
    _case(causal_pad, "mask", mask=BOTH, fill=MIN),
    _case(causal_pad_or, "mask", mask=BOTH, fill=MIN),
    _case(window, mask=frozenset({"causal", "window"}), fill=INF),
    _case(buffer_mask, mask=frozenset({"arbitrary"}), fill=INF),
    _case(pad_sdpa_bool, "mask", mask=PADDED),
    _case(pad_sdpa_float, "mask", mask=PADDED),
    _case(pad_bmm, "mask", mask=PADDED, fill=INF),
    _case(clamped, "mask", mask=PADDED, fill=MIN),
    _case(small_fill, "mask", mask=PADDED, fill=-1e4),
    _case(position_bias, bias=True),
    _case(alibi_baddbmm, bias=True),
    _case(bias_then_scale, bias=True),
    _case(None, name="single-head", build=SingleHead, heads=1, kv_heads=1),
    _case(
        None,
        "sequence",
        name="single-head-sequence",
        build=Sequence,
        path="inner",
        heads=1,
        kv_heads=1,
    ),
    _case(None, name="class", module=ClassAttention, kind="class"),
    _case(None, name="windowed", module=Windowed, bias=True, even=True),
    _case(None, "bare", name="bare", build=lambda z: Bare(), kind="cross"),
    _case(
        None,
        name="mha-causal",
        build=lambda z: Multihead(z, causal=True, need_weights=False),
        path="mha",
        mask=CAUSAL,
    ),
    _case(
        None,
        "mask",
        name="mha-padded",
        build=lambda z: Multihead(z, need_weights=False),
        path="mha",
        mask=PADDED,
    ),
    _case(
        None,
        "mask",
        name="mha-padded-weights",
        build=Multihead,
        path="mha",
        scale=1.0,
        mask=PADDED,
        fill=INF,
    ),
    _case(
        None,
        "mask",
        name="mha-causal-padded",
        build=lambda z: Multihead(z, causal=True, need_weights=False),
        path="mha",
        mask=BOTH,
    ),
]

POSITIVES = [*PLAIN, *PADDING, *CAUSALS, *OTHERS]


def spelled(site):
    """The record without what names the place in the source."""
    return replace(site, name="", source="", weights=(), legal={})


def located(source: str) -> str:
    """The line of code at ``file:line``, which must lie in this package."""
    file, _, line = source.rpartition(":")
    assert Path(file).parent == Path(__file__).parent, source
    return Path(file).read_text().splitlines()[int(line) - 1]
