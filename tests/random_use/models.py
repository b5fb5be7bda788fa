"""The modules of a random model. They spell softmax attention and know no form.

Shapes: B batch, H heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_use.meaning import Spec, slopes

LIMIT = 100.0
"""Inputs beyond it fail the model's own check."""

LATENTS = 3

Past = tuple[Tensor, Tensor] | None
"""Keys and values of earlier tokens, ``[B, G, S, d]`` each."""


def allowed(spec: Spec, t: int, s: int, like: Tensor) -> Tensor:
    """Kept positions ``[T, S]`` by formulas that hold at every size."""
    n = spec.number
    first = s - t if spec.cached else 0
    i = torch.arange(t, device=like.device)[:, None] + first
    j = torch.arange(s, device=like.device)
    below = j <= i
    if spec.mask == "causal":
        return torch.ones(t, s, dtype=torch.bool).tril(first) if n == 2 else below
    if spec.mask == "window":
        if n == 3:
            return below & (i - j < torch.sym_min(s, n))
        return below.tril(first).triu(first + 1 - n)
    if spec.mask == "sink":
        return below & ((i - j < n) | (j < 1))
    if spec.mask == "chunks":
        return below & (i // n == j // n)
    if spec.mask == "prefix":
        return below | (j < n)
    return (i - j).abs() < n


def spelled(spec: Spec, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """Softmax attention ``[B, H, T, d]`` of ``q [B, H, T, d]`` and ``k, v [B, G, S, d]``."""
    t, s = q.shape[2], k.shape[2]
    if spec.style == "is-causal":
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=spec.kv_heads != spec.heads
        )
    mask = None if spec.mask == "none" else allowed(spec, t, s, q)
    pads = None if keep is None else keep[:, None, None, :]
    bias = None
    if spec.alibi:
        j = torch.arange(s, device=q.device)
        bias = (slopes(spec.heads).to(q) * (j - s).to(q.dtype)).to(q.dtype)
    if spec.style.startswith("sdpa"):
        return _fused(spec, q, k, v, mask, pads, bias)
    if spec.kv_heads != spec.heads:
        k, v = (x.repeat_interleave(spec.heads // spec.kv_heads, 1) for x in (k, v))
    x = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if spec.softcap:
        x = 2.0 * torch.tanh(x / 2.0)
    if bias is not None:
        x = x + bias
    if mask is not None:
        x = _masked(spec.style, x, mask)
    if pads is not None:
        x = _masked(spec.padding, x, pads)
    return x.softmax(-1).to(v.dtype) @ v


def _masked(style: str, x: Tensor, keep: Tensor) -> Tensor:
    if style == "where":
        return torch.where(keep, x, -math.inf)
    if style == "add":
        return x + torch.zeros_like(keep, dtype=x.dtype).masked_fill(~keep, -1e4)
    return x.masked_fill(~keep, -1e9 if style == "low" else -math.inf)


def _fused(
    spec: Spec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pads: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    both = mask if pads is None else (pads if mask is None else mask & pads)
    given = both
    if spec.style == "sdpa-float" and both is not None:
        given = torch.zeros_like(both, dtype=q.dtype).masked_fill(~both, -math.inf)
    if bias is not None:
        given = bias if both is None else bias.masked_fill(~both, -math.inf)
    if given is not None and given.dim() < 4:
        given = given.view((1,) * (4 - given.dim()) + given.shape)
    grouped = spec.kv_heads != spec.heads
    return F.scaled_dot_product_attention(q, k, v, attn_mask=given, enable_gqa=grouped)


class Attention(nn.Module):
    """One attention, two in a row, or one of learned queries of batch 1."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        d = spec.width // spec.heads
        self.q = nn.Linear(spec.width, spec.width)
        self.k = nn.Linear(spec.width, spec.kv_heads * d)
        self.v = nn.Linear(spec.width, spec.kv_heads * d)
        self.o = nn.Linear(spec.width, spec.width)
        if spec.kind == "pair":
            self.q2 = nn.Linear(spec.width, spec.width)
        if spec.kind == "latents":
            self.latents = nn.Parameter(torch.randn(1, LATENTS, spec.width))

    def core(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        return spelled(self.spec, q, k, v, keep)

    def forward(self, x: Tensor, keep: Tensor | None, past: Past = None) -> tuple[Tensor, Past]:
        """``[B, T, D]``, and keys and values of all tokens up to these."""
        d = self.spec.width // self.spec.heads
        split = lambda y: y.unflatten(-1, (-1, d)).transpose(1, 2)  # noqa: E731
        merge = lambda y: y.transpose(1, 2).flatten(2)  # noqa: E731
        source = self.latents if self.spec.kind == "latents" else x
        q, k, v = split(self.q(source)), split(self.k(x)), split(self.v(x))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = merge(self.core(q, k, v, keep))
        if self.spec.kind == "pair":
            y = y + merge(self.core(split(self.q2(x)), k, v, keep))
        y = self.o(y)
        return (y.mean(1, keepdim=True) if self.spec.kind == "latents" else y), (k, v)


class Block(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        self.norm = nn.BatchNorm1d(width) if spec.norm == "batch" else nn.LayerNorm(width)
        self.attn, self.mlp = Attention(spec), nn.Linear(width, width)

    def forward(self, x: Tensor, keep: Tensor | None, past: Past = None) -> tuple[Tensor, Past]:
        if self.spec.breaks:
            torch._dynamo.graph_break()
        batch = self.spec.norm == "batch"
        y = self.norm(x.transpose(1, 2)).transpose(1, 2) if batch else self.norm(x)
        y, past = self.attn(y, keep, past)
        x = x + y
        return x + 0.5 * torch.tanh(self.mlp(x)), past


class Model(nn.Module):
    """Blocks with a head. Tied: all layers are one block; loop: it is called again and again."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        own = [Block(spec) for _ in range(spec.layers)]
        if spec.wiring == "tied":
            own = own[:1] * spec.layers
        self.blocks = nn.ModuleList(own[:1] if spec.wiring == "loop" else own)
        if spec.shared:
            for block in own[1:]:
                block.attn.v = own[0].attn.v
        self.head = nn.Linear(spec.width, 5)
        self.register_buffer("count", torch.zeros(()))

    def forward(
        self, x: Tensor, keep: Tensor | None = None, past: list[Past] | None = None
    ) -> Any:
        """``[B, T, 5]``; with the ``past`` of every block also that of the next call."""
        if self.spec.check:
            torch._assert_async(x.abs().amax() < LIMIT, "expected small inputs")
        if self.spec.counter:
            self.count.add_(1.0)
        if self.spec.branch and x.shape[1] > self.spec.number:
            x = 0.5 * x
        again = self.spec.layers if self.spec.wiring == "loop" else 1
        after: list[Past] = []
        for _ in range(again):
            for i, block in enumerate(self.blocks):
                x, own = block(x, keep, None if past is None else past[i])
                after.append(own)
        return self.head(x) if past is None else (self.head(x), after)


def build(spec: Spec, seed: int) -> Model:
    """A model with random weights, those of attention large enough for its form to matter."""
    torch.manual_seed(seed)
    model = Model(spec)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".attn." in name and p.dim() == 2:
                p.mul_(2.0)
    return model
