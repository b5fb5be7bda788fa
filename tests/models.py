"""Small attention modules in many spellings, with the record expected of each, and look-alikes.

Shapes: B batch, H heads, G key/value heads, T queries, S keys, d head dim. The sizes below are
all different, so that no axis is found by its size; ``EQUAL`` makes them all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN = torch.finfo(torch.float32).min
INF = -math.inf


@dataclass(frozen=True)
class Sizes:
    """B, H, T, S (cross attention only) and d."""

    B: int = 2
    H: int = 4
    T: int = 5
    S: int = 7
    d: int = 6

    @property
    def D(self) -> int:
        return self.H * self.d


DISTINCT = Sizes()
EQUAL = Sizes(4, 4, 4, 4, 4)


# --- scores and softmax: (q [B,H,T,d], k, v, mask, module) -> [B,H,T,d]


def weighted(scores, v):
    return scores.softmax(-1) @ v


def mul_after(q, k, v, m, mod):
    return weighted(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, v)


def mul_before_left(q, k, v, m, mod):
    return weighted(q.shape[-1] ** -0.5 * torch.matmul(q, k.mT), v)


def div_after(q, k, v, m, mod):
    return weighted(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), v)


def div_in_place(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1)
    scores /= math.sqrt(q.shape[-1])
    return weighted(scores, v)


def prescaled(q, k, v, m, mod):
    q = q * q.shape[-1] ** -0.5
    return weighted(q @ k.transpose(-2, -1), v)


def scaled_both(q, k, v, m, mod):
    root = q.shape[-1] ** -0.25
    return weighted((q * root) @ (k * root).transpose(-2, -1), v)


def tensor_scale(q, k, v, m, mod):
    return weighted(q @ k.transpose(-2, -1) / torch.sqrt(mod.width), v)


def temperature(q, k, v, m, mod):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return weighted(q @ k.transpose(-2, -1) * mod.temperature.clamp(max=4.0).exp(), v)


def functional(q, k, v, m, mod):
    return torch.matmul(F.softmax(torch.matmul(q, k.mT) * q.shape[-1] ** -0.5, dim=3), v)


def layer_softmax(q, k, v, m, mod):
    return mod.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5) @ v


def upcast(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def upcast_float(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.float().softmax(-1).type_as(v) @ v


def upcast_operands(q, k, v, m, mod):
    scores = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.softmax(-1).to(v.dtype) @ v


def max_subtracted(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return weighted(scores - scores.amax(-1, keepdim=True), v)


def dropped(q, k, v, m, mod):
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return F.dropout(weights, 0.3, mod.training) @ v


def einsum(q, k, v, m, mod):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("b h i j, b h j d -> b h i d", scores.softmax(-1), v)


def transposed_output(q, k, v, m, mod):
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)


def keys_first(q, k, v, m, mod):
    """Scores ``[B,H,S,T]``, softmax over S at -2, values summed over it."""
    scores = k @ q.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (v.transpose(-2, -1) @ scores.softmax(-2)).transpose(-2, -1)


def sdpa(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_keywords(q, k, v, m, mod):
    return F.scaled_dot_product_attention(
        query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, scale=q.shape[-1] ** -0.5
    )


def sdpa_flat(q, k, v, m, mod):
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    return out.unflatten(0, q.shape[:2])


def bmm_flat(q, k, v, m, mod):
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    weights = (torch.bmm(flat[0], flat[1].transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.bmm(weights, flat[2]).view(q.shape)


def baddbmm_empty(q, k, v, m, mod):
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    empty = torch.empty(flat[0].shape[0], q.shape[2], k.shape[2], dtype=q.dtype)
    scores = torch.baddbmm(empty, flat[0], flat[1].mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).view(q.shape)


# masks: m is bool [B, S], True = attended


def low(q):
    """The lowest number of the dtype."""
    return torch.finfo(q.dtype).min


def scores_of(q, k):
    return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


def pad_additive(q, k, v, m, mod):
    mask = torch.zeros(m.shape, dtype=q.dtype).masked_fill(~m, low(q))[:, None, None, :]
    return weighted(scores_of(q, k) + mask, v)


def pad_additive_left(q, k, v, m, mod):
    mask = torch.where(m, torch.zeros((), dtype=q.dtype), low(q))[:, None, None, :]
    return weighted(mask + scores_of(q, k), v)


def pad_one_minus(q, k, v, m, mod):
    mask = (1.0 - m[:, None, None, :].to(q.dtype)) * low(q)
    return weighted(scores_of(q, k) + mask, v)


def pad_masked_fill(q, k, v, m, mod):
    return weighted(scores_of(q, k).masked_fill(~m[:, None, None, :], low(q)), v)


def pad_where(q, k, v, m, mod):
    return weighted(torch.where(m[:, None, None, :], scores_of(q, k), low(q)), v)


def pad_where_inverted(q, k, v, m, mod):
    drop = m.logical_not()[:, None, None, :].expand(-1, q.shape[1], q.shape[2], -1)
    return weighted(torch.where(drop, torch.full((), low(q), dtype=q.dtype), scores_of(q, k)), v)


def pad_in_place(q, k, v, m, mod):
    scores = scores_of(q, k)
    scores.masked_fill_(~m[:, None, None, :], low(q))
    return weighted(scores, v)


def pad_bias_in_place(q, k, v, m, mod):
    keep = m[:, None, None, :]
    bias = torch.zeros_like(keep, dtype=q.dtype)
    bias.masked_fill_(~keep, low(q))
    return weighted(scores_of(q, k) + bias, v)


def pad_sdpa_bool(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m[:, None, None, :])


def pad_sdpa_float(q, k, v, m, mod):
    mask = torch.zeros(m.shape, dtype=q.dtype).masked_fill(~m, INF)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def pad_bmm(q, k, v, m, mod):
    """fairseq: masked in 4-D, multiplied in 3-D."""
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    scores = torch.bmm(flat[0], flat[1].mT) * q.shape[-1] ** -0.5
    scores = scores.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    scores = scores.masked_fill(~m[:, None, None, :], INF).view(-1, q.shape[2], k.shape[2])
    return torch.bmm(scores.softmax(-1), flat[2]).view(q.shape)


def clamped(q, k, v, m, mod):
    """xglm: a mask of -inf, then a floor: an empty row is the mean of v, not NaN."""
    mask = torch.where(m, 0.0, INF)[:, None, None, :].to(q.dtype)
    return weighted(torch.clamp(scores_of(q, k) + mask, min=low(q)), v)


def small_fill(q, k, v, m, mod):
    """A fill of -1e4: an empty row is the mean of v, not softmax of the logits below."""
    return weighted(scores_of(q, k).masked_fill(~m[:, None, None, :], -1e4), v)


def _lower(q, k):
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()


def causal_fill(q, k, v, m, mod):
    return weighted(scores_of(q, k).masked_fill(~_lower(q, k), INF), v)


def causal_where(q, k, v, m, mod):
    rows = torch.arange(q.shape[2])
    return weighted(torch.where(rows[:, None] >= rows, scores_of(q, k), INF), v)


def causal_additive(q, k, v, m, mod):
    mask = torch.zeros(q.shape[2], k.shape[2], dtype=q.dtype).masked_fill(~_lower(q, k), INF)
    return weighted(scores_of(q, k) + mask, v)


def causal_triu(q, k, v, m, mod):
    """The spelling of Meta's llama."""
    mask = torch.full((q.shape[2], k.shape[2]), INF, dtype=q.dtype).triu(diagonal=1)
    return weighted(scores_of(q, k) + mask, v)


def causal_sdpa(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def causal_sdpa_mask(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_lower(q, k))


def causal_pad(q, k, v, m, mod):
    keep = _lower(q, k) & m[:, None, None, :]
    return weighted(scores_of(q, k).masked_fill(~keep, low(q)), v)


def causal_pad_or(q, k, v, m, mod):
    drop = torch.logical_or(~_lower(q, k), ~m[:, None, None, :])
    return weighted(
        scores_of(q, k) + torch.zeros(drop.shape, dtype=q.dtype).masked_fill(drop, low(q)), v
    )


def window(q, k, v, m, mod):
    rows = torch.arange(q.shape[2])
    gap = rows[:, None] - rows
    return weighted(scores_of(q, k).masked_fill(~((gap >= 0) & (gap < 3)), INF), v)


def buffer_mask(q, k, v, m, mod):
    """nanoGPT: the mask is a buffer, whose values nobody may assume."""
    keep = mod.lower[:, :, : q.shape[2], : k.shape[2]]
    return weighted(scores_of(q, k).masked_fill(keep == 0, INF), v)


def position_bias(q, k, v, m, mod):
    return weighted(scores_of(q, k) + mod.table[:, : q.shape[2], : k.shape[2]], v)


def alibi_baddbmm(q, k, v, m, mod):
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    slopes = torch.arange(1, q.shape[1] + 1).repeat(q.shape[0])[:, None, None]
    alibi = slopes * torch.arange(k.shape[2], dtype=q.dtype)[None, None] * 0.1
    scores = torch.baddbmm(alibi, flat[0], flat[1].mT, beta=1.0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).view(q.shape)


def bias_then_scale(q, k, v, m, mod):
    """codegen: the division holds for the bias as well."""
    scores = q @ k.mT + mod.table[:, : q.shape[2], : k.shape[2]]
    return weighted(scores / math.sqrt(q.shape[-1]), v)


class Attention(nn.Module):
    """Multi-head attention: projections, ``core`` on ``[B,H,T,d]``, output projection.

    ``packed``: ``separate``, ``unbind`` (timm) or ``chunk``. ``groups``: key/value heads, repeated
    by ``repeat``: ``expand``, ``interleave``, ``gqa`` (the fused kernel's), ``broadcast`` (G = 1).
    """

    def __init__(self, core, sizes=DISTINCT, packed="separate", groups=None, repeat="expand"):
        super().__init__()
        self.core, self.packed, self.repeat = core, packed, repeat
        self.H, self.d, self.G = sizes.H, sizes.d, groups or sizes.H
        wide, narrow = sizes.D, self.G * sizes.d
        if packed == "separate":
            self.q, self.k = nn.Linear(wide, wide), nn.Linear(wide, narrow)
            self.v = nn.Linear(wide, narrow)
        else:
            self.qkv = nn.Linear(wide, 3 * wide)
        self.o = nn.Linear(wide, wide)
        self.softmax = nn.Softmax(dim=-1)
        self.temperature = nn.Parameter(torch.linspace(0.1, 1.0, sizes.H).view(-1, 1, 1))
        self.table = nn.Parameter(torch.randn(sizes.H, 16, 16))
        self.register_buffer("width", torch.tensor(float(sizes.d)))
        self.register_buffer("lower", torch.ones(16, 16).tril()[None, None])

    def heads(self, x):
        return x.view(*x.shape[:2], -1, self.d).transpose(1, 2)  # [B, H|G, T, d]

    def project(self, x, context):
        if self.packed == "separate":
            return tuple(
                self.heads(f(y)) for f, y in ((self.q, x), (self.k, context), (self.v, context))
            )
        qkv = self.qkv(x)
        if self.packed == "unbind":
            shape = (*x.shape[:2], 3, self.H, self.d)
            return qkv.reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        return tuple(self.heads(y) for y in qkv.chunk(3, dim=-1))

    def repeated(self, x):
        n = self.H // self.G
        if n == 1 or self.repeat in ("gqa", "broadcast"):
            return x
        if self.repeat == "interleave":
            return x.repeat_interleave(n, dim=1)
        B, G, S, d = x.shape
        return x[:, :, None].expand(B, G, n, S, d).reshape(B, G * n, S, d)

    def forward(self, x, mask=None, context=None):
        q, k, v = self.project(x, x if context is None else context)
        k, v = self.repeated(k), self.repeated(v)
        out = self.core(q, k, v, mask, self)
        return self.o(out.transpose(1, 2).reshape(x.shape))


class TokensSecond(Attention):
    """einsum straight on ``[B,T,H,d]``: no transpose anywhere."""

    def heads(self, x):
        return x.view(*x.shape[:2], -1, self.d)

    def forward(self, x, mask=None, context=None):
        q, k, v = self.project(x, x)
        scores = torch.einsum("bthd,bshd->bhts", q, k) * self.d**-0.5
        return self.o(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2))


class KeysPermuted(Attention):
    """Keys come as ``[B,H,d,S]`` from one permute, so that no transpose follows."""

    def forward(self, x, mask=None, context=None):
        q, v = self.heads(self.q(x)), self.heads(self.v(x))
        k = self.k(x).view(*x.shape[:2], self.H, self.d).permute(0, 2, 3, 1)
        out = ((q @ k) * self.d**-0.5).softmax(-1) @ v
        return self.o(out.transpose(1, 2).reshape(x.shape))


class SingleHead(nn.Module):
    """``[B,T,D]`` without any head axis."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(sizes.D, sizes.D) for _ in range(4))

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT * x.shape[-1] ** -0.5
        return self.o(scores.softmax(-1) @ self.v(x))


class Sequence(nn.Module):
    """No batch: ``[T, D]``, one head."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.inner = SingleHead(sizes)

    def forward(self, x):
        return self.inner(x)


class ClassAttention(Attention):
    """One query, the first token, against all."""

    def forward(self, x, mask=None, context=None):
        q, k, v = self.project(x, x)
        out = mul_after(q[:, :, :1], k, v, None, self)
        return self.o(out.transpose(1, 2).flatten(2))


class Windowed(Attention):
    """Five axes: ``[B, windows, H, T, d]`` with a bias per head."""

    def forward(self, x, mask=None, context=None):
        B, T, D = x.shape
        y = x.view(B, 2, T // 2, D)
        q, k, v = (
            f(y).view(B, 2, T // 2, self.H, self.d).transpose(2, 3)
            for f in (self.q, self.k, self.v)
        )
        scores = q @ k.mT * self.d**-0.5 + self.table[:, : T // 2, : T // 2]
        return self.o((scores.softmax(-1) @ v).transpose(2, 3).reshape(B, T, D))


class Bare(nn.Module):
    """No projection at all: q, k, v are the arguments."""

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` with fixed keywords; ``weights`` returns them too."""

    def __init__(self, sizes=DISTINCT, batch_first=True, weights=False, causal=False, **kwargs):
        super().__init__()
        self.mha = nn.MultiheadAttention(sizes.D, sizes.H, batch_first=batch_first)
        self.batch_first, self.weights, self.causal, self.kwargs = (
            batch_first,
            weights,
            causal,
            kwargs,
        )

    def forward(self, x, mask=None, context=None):
        context = x if context is None else context
        if not self.batch_first:
            x, context = x.transpose(0, 1), context.transpose(0, 1)
        given = dict(self.kwargs)
        if mask is not None:
            given["key_padding_mask"] = ~mask
        if self.causal:
            given["attn_mask"] = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out, weights = self.mha(x, context, context, **given)
        out = out if self.batch_first else out.transpose(0, 1)
        return (out, weights) if self.weights else out


class Encoder(nn.Module):
    """``nn.TransformerEncoderLayer`` without dropout."""

    def __init__(self, sizes=DISTINCT, norm_first=False, activation="relu"):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            sizes.D,
            sizes.H,
            2 * sizes.D,
            dropout=0.0,
            batch_first=True,
            norm_first=norm_first,
            activation=activation,
        )

    def forward(self, x, mask=None):
        return self.layer(x, src_key_padding_mask=None if mask is None else ~mask)


@dataclass(frozen=True)
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


# --- look-alikes ---------------------------------------------------------------------------------


def wrong_axis(q, k, v, m, mod):
    return scores_of(q, k).softmax(-2) @ v


def head_axis(q, k, v, m, mod):
    return scores_of(q, k).softmax(1) @ v


def channel(q, k, v, m, mod):
    """XCiT: d x d weights."""
    return (v.transpose(-2, -1).mT.mT.mT.mT @ (q.mT @ k * 0.3).softmax(-1)).mT.contiguous().mT


def channel_fused(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT


def linear_attention(q, k, v, m, mod):
    """Softmax of q and of k, no T x S map."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def sum_normalised(q, k, v, m, mod):
    weights = scores_of(q, k).relu()
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)) @ v


def soft_sum(q, k, v, m, mod):
    """Softmax, then gated: no plain attention any more."""
    return (scores_of(q, k).softmax(-1) * mod.temperature) @ v


def joint_rows(q, k, v, m, mod):
    """Softmax over pieces of two rows' worth of columns: the view is not the identity."""
    scores = scores_of(q, k)
    B, H, T, S = scores.shape
    return scores.reshape(B, H, S, T).softmax(-1).reshape(B, H, T, S) @ v


def split_rows(q, k, v, m, mod):
    """Softmax within halves of the keys."""
    scores = scores_of(q, k)
    B, H, T, S = scores.shape
    return scores.reshape(B, H, 2 * T, S // 2).softmax(-1).reshape(B, H, T, S) @ v


def column_maximum(q, k, v, m, mod):
    """The maximum of a column differs along the row: softmax feels it."""
    scores = scores_of(q, k)
    return weighted(scores - scores.amax(-2, keepdim=True), v)


def rounded(q, k, v, m, mod):
    return weighted(torch.div(scores_of(q, k), 0.5, rounding_mode="floor"), v)


def small_after(q, k, v, m, mod):
    """The scale shrinks the mask until it is no mask."""
    lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return weighted(scores_of(q, k).masked_fill(~lower, -2e4) * 1e-4, v)


class Router(nn.Module):
    """A mixture of experts: softmax of a linear layer, then a product."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.gate, self.experts = nn.Linear(sizes.D, 3), nn.Parameter(torch.randn(3, sizes.D))

    def forward(self, x):
        return self.gate(x).softmax(-1) @ self.experts


class Pooling(nn.Module):
    """Attention pooling: softmax over tokens of one score each."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.score = nn.Linear(sizes.D, 1)

    def forward(self, x):
        return (x * self.score(x).softmax(1)).sum(1)


class PoolingProduct(nn.Module):
    """As ``Pooling``, the sum written as a product."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.score = nn.Linear(sizes.D, 2)

    def forward(self, x):
        return self.score(x).softmax(1).mT @ x


class Classifier(nn.Module):
    """Softmax at the end."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.head = nn.Linear(sizes.D, 10)

    def forward(self, x):
        return self.head(x).softmax(-1)


class JointMap(nn.Module):
    """One softmax over the whole T x S map, one head."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.q, self.k = nn.Linear(sizes.D, sizes.D), nn.Linear(sizes.D, sizes.D)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT
        return scores.flatten(1).softmax(-1).view(scores.shape) @ x


DECOYS = [
    (_case(wrong_axis), "AXIS_NOT_TOKEN"),
    (_case(head_axis), "AXIS_NOT_TOKEN"),
    (_case(None, name="channel", build=lambda z: XCA(z)), "AXIS_NOT_TOKEN"),
    (_case(channel_fused), "AXIS_NOT_TOKEN"),
    (_case(soft_sum), "NOT_ATTENTION:gate"),
    (_case(None, name="router", build=Router), "NOT_ATTENTION:router"),
    (_case(None, name="pooling", build=Pooling), "NOT_ATTENTION:router"),
    (_case(None, name="pooling-product", build=PoolingProduct), "NOT_ATTENTION:router"),
    (_case(None, name="classifier", build=Classifier), "NOT_ATTENTION:router"),
]
"""What is no attention, with the code that says so."""

IMPOSTORS = [
    _case(joint_rows, "context"),
    _case(split_rows, even=True),
    _case(column_maximum),
    _case(rounded),
    _case(small_after),
    _case(None, name="joint-map", build=JointMap),
]
"""Near misses, which a careless reader takes for attention. Whatever the verdict, no legal
``softmax`` site may change their numbers."""


class XCA(nn.Module):
    """Cross-covariance attention."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.H, self.d = sizes.H, sizes.d
        self.qkv, self.o = nn.Linear(sizes.D, 3 * sizes.D), nn.Linear(sizes.D, sizes.D)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.H, self.d).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        out = (q @ k.transpose(-2, -1)).softmax(-1) @ v  # [B, H, d, T]
        return self.o(out.permute(0, 3, 1, 2).reshape(B, T, D))


# --- written in place, aliased, cut off from gradients


def zeros_written(q, k, v, m, mod):
    """A mask made of zeros, then written through a view."""
    mask = torch.zeros(q.shape[2], k.shape[2])
    mask[:, 3:] = INF
    return weighted(scores_of(q, k) + mask, v)


def ones_written(q, k, v, m, mod):
    keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    keep[:, 3:] = False
    return weighted(scores_of(q, k).masked_fill(~keep, INF), v)


def compared_written(q, k, v, m, mod):
    region = torch.zeros(q.shape[2], k.shape[2])
    region[:, 3:] = 1
    return weighted(scores_of(q, k).masked_fill(region == 1, INF), v)


def bias_written(q, k, v, m, mod):
    """Written after it was added: the sum must keep the old values."""
    bias = torch.ones(q.shape[2], k.shape[2]) * torch.arange(k.shape[2]) * 0.3
    scores = scores_of(q, k) + bias
    bias[:, 1:] = 5.0
    return weighted(scores, v) + bias.sum() * 0.01


def view_of_view(q, k, v, m, mod):
    """Two views taken before the write, read after it."""
    scores = scores_of(q, k)
    same = scores.transpose(-2, -1).transpose(-2, -1)
    scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), INF)
    return weighted(same, v)


def scores_set(q, k, v, m, mod):
    scores = scores_of(q, k)
    scores[..., 0] = INF
    return weighted(scores, v)


def values_written(q, k, v, m, mod):
    weights = scores_of(q, k).softmax(-1)
    v = v.contiguous() * 1.0
    out = weights @ v
    v.mul_(3.0)
    return out + 0.1 * v


def added_out(q, k, v, m, mod):
    scores = scores_of(q, k)
    lower = torch.zeros(scores.shape[-2:]).masked_fill(
        torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), INF
    )
    torch.add(scores, lower, out=scores)
    return weighted(scores, v)


WRITTEN = [
    _case(core)
    for core in (
        zeros_written,
        ones_written,
        compared_written,
        bias_written,
        view_of_view,
        scores_set,
    )
]


def detached_weights(q, k, v, m, mod):
    return scores_of(q, k).softmax(-1).detach() @ v


def detached_scores(q, k, v, m, mod):
    return scores_of(q, k).detach().softmax(-1) @ v


def no_grad_weights(q, k, v, m, mod):
    with torch.no_grad():
        weights = scores_of(q, k).softmax(-1)
    return weights @ v


def no_grad_all(q, k, v, m, mod):
    with torch.no_grad():
        out = weighted(scores_of(q, k), v)
    return out


CUT_GRADIENTS = [
    _case(core) for core in (detached_weights, detached_scores, no_grad_weights, no_grad_all)
]
"""Gradients that stop somewhere between q and the output, and must keep doing so."""


# --- stacks


class Block(nn.Module):
    """Pre-norm attention and residual; ``broken`` breaks the graph after each."""

    def __init__(self, sizes=DISTINCT, core=mul_after, broken=False):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(sizes.D), Attention(core, sizes)
        self.broken = broken

    def forward(self, x: Tensor, mask=None) -> Tensor:
        x = x + self.attn(self.norm(x), mask)
        if self.broken:
            torch._dynamo.graph_break()
        return x


class Stack(nn.Module):
    """Blocks in a loop."""

    def __init__(self, depth=3, sizes=DISTINCT, core=mul_after, broken=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes, core, broken) for _ in range(depth))
        self.head = nn.Linear(sizes.D, 3)

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)
