"""Modules around the spellings: projections, layouts of heads and tokens, output projections.

Shapes: B batch, H heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.sizes import DISTINCT
from models.spellings import mul_after


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


class Mapped(nn.Module):
    """Projections around a core of ``(q, k, v) [B, H, T, d]``, with one parameter for a bias."""

    def __init__(self, core, *bias, heads=2):
        super().__init__()
        self.qkv, self.core, self.h = nn.Linear(8, 24), core, heads
        self.bias = nn.Parameter(torch.randn(*bias)) if bias else None

    def forward(self, x, *more):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.h, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.core(self, q, k, v, *more)
