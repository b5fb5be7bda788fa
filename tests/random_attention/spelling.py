"""The module of a random case, written out as its spelling says; or a near miss of attention.

Shapes: B batch, W windows, H heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_attention.cases import Case


class Attention(nn.Module):
    """The model of a case: inputs are ``x`` (or ``q, k, v``), a padding mask, a bias."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        equal = case.sizes == "equal"
        self.b, self.h, self.t, self.d = (4, 4, 4, 4) if equal else (2, 3, 5, 4)
        if case.sizes == "single":
            self.h = 1
        self.g = self.h
        if case.group != "none" and not equal:
            self.h, self.g = 6, 3
        elif case.group != "none":
            self.g = 2
        crossed = case.source == "cross" or (case.sizes == "one-query")
        self.s = 7 if crossed and not equal else self.t
        self.t = 1 if case.sizes == "one-query" else self.t
        self.dv = self.d if equal or case.source == "packed" else 6
        self.w = 3 if case.layout == "window" else 0
        width = 8
        self.q = nn.Linear(width, self.h * self.d)
        self.k = nn.Linear(width, self.g * self.d)
        self.v = nn.Linear(width, self.g * self.dv)
        self.qkv = nn.Linear(width, 3 * self.h * self.d)
        self.soft = nn.Softmax(-1)
        self.register_buffer("below", torch.tril(torch.ones(16, 16, dtype=torch.bool)))
        self.register_buffer("temper", torch.tensor(0.7, dtype=torch.float64))
        self.double().eval()

    def data(self) -> tuple[Tensor, ...]:
        """Inputs of the model, always the same for one case."""
        make = torch.Generator().manual_seed(3)
        normal = lambda *s: torch.randn(*s, generator=make, dtype=torch.float64)  # noqa: E731
        keep = torch.ones(self.b, self.s, dtype=torch.bool)
        keep[-1, self.s - 1 :] = self.s == 1
        extra = (keep, normal(self.h, self.t, self.s), normal(self.t, self.s) > -1.5)
        if self.case.source == "inputs":
            shapes = (
                (self.h, self.t, self.d),
                (self.g, self.s, self.d),
                (self.g, self.s, self.dv),
            )
            return (*(normal(self.b, *s) for s in shapes), *extra)
        lead = (self.b, self.w) if self.w else (self.b,)
        x = normal(*lead, self.t, 8)
        y = normal(*lead, self.s, 8) if self.cross else x
        return (x, y, x, *extra)

    @property
    def cross(self) -> bool:
        return self.case.source == "cross" or self.case.sizes == "one-query"

    def operands(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, (W,) H, T, d]`` and key/value heads before they are repeated."""
        if self.case.source == "inputs":
            return x, y, z
        y = y if self.cross else x
        split = lambda p, n, h: p.unflatten(-1, (h, -1)).transpose(-3, -2)  # noqa: E731
        if self.case.source == "packed" and not self.cross:
            qkv = self.qkv(x).unflatten(-1, (3, self.h, self.d))
            q, k, v = (qkv.select(-3, i).transpose(-3, -2) for i in range(3))
            return q, k, v
        return (
            split(self.q(x), x, self.h),
            split(self.k(y), y, self.g),
            split(self.v(y), y, self.g),
        )

    def repeated(self, x: Tensor) -> Tensor:
        """Key/value heads repeated for grouped queries."""
        n = self.h // self.g
        if self.case.group == "none" or n == 1:
            return x
        if self.case.group == "interleave":
            return x.repeat_interleave(n, 1)
        b, g, s, d = x.shape
        return x[:, :, None].expand(b, g, n, s, d).reshape(b, g * n, s, d)

    def forward(self, x, y, z, keep, bias, pattern):
        q, k, v = self.operands(x, y, z)
        k, v = self.repeated(k), self.repeated(v)
        return spelled(self, q, k, v, keep, bias, pattern)


def spelled(m: Attention, q, k, v, keep, bias, pattern):
    """The attention of ``m.case``, spelled as it says; or a near miss."""
    c, miss = m.case, m.case.miss
    factor = m.d**-0.5
    if miss == "channel":
        n = min(q.shape[-2], k.shape[-2])
        q, k = (x[..., :n, :].transpose(-2, -1) for x in (q, k))
        v = k * 2
    if c.scale == "query":
        q = q * factor
    if c.scale == "key":
        k = k * factor
    if c.scale == "both":
        q, k = q * factor**0.5, k * factor**0.5
    lead = q.shape[:-2]
    if c.layout == "flat":
        q, k, v = (x.flatten(0, -3) for x in (q, k, v))
    s = scores(m, q, k)
    if c.layout == "flat":
        s = s.view(*lead, *s.shape[-2:])
    if c.scale == "mul":
        s = s * factor
    if c.scale == "div":
        s = s / factor**-1
    if c.scale == "in-place":
        s *= factor
    if c.scale == "tensor":
        s = s * m.temper
    if miss != "channel":
        s = masked(m, s, keep, bias, pattern)
    if c.scale == "after":
        s = s * factor
    if c.layout == "flat":
        s = s.flatten(0, -3)
    dtype = s.dtype
    s = stepped(c.loose, s, q, k)
    if c.loose == "joined":
        v = torch.cat([v, v.flip(-2) * 0.5], -2)
    if miss == "router":
        s = F.linear(
            q.flatten(-2), torch.ones(s.shape[-1], q.shape[-2] * q.shape[-1], dtype=dtype)
        )
        s = s.unsqueeze(-2).expand(*s.shape[:-1], q.shape[-2], s.shape[-1])
    if miss == "pooling":
        s = k.sum(-1).unsqueeze(-2).expand(*k.shape[:-2], q.shape[-2], k.shape[-2])
    p = weights(m, s)
    if miss == "summed":
        p = s / s.sum(-1, keepdim=True)
    if miss == "squared":
        p = p * p
    if miss == "renormalised":
        p = p / (p.sum(-2, keepdim=True) + 1e-6)
    if miss == "log-weights":
        p = F.log_softmax(s, -1)
    p = passed(c.loose, p)
    if c.dropout:
        p = F.dropout(p, 0.1, m.training)
    if c.output == "cast":
        p = p.to(v.dtype)
    if miss == "no-values":
        return p
    if miss == "own-weights":
        return p @ p.transpose(-2, -1)
    if miss == "values-other-axis":
        p = p.transpose(-2, -1)
        n = min(p.shape[-1], v.shape[-2])
        return p[..., :n] @ v[..., :n, :]
    if c.layout == "tokens" and miss == "":
        out = torch.einsum("bhts,bhsd->bthd", p, v)
    elif c.output == "turned":
        out = (v.transpose(-2, -1) @ p.transpose(-2, -1)).transpose(-2, -1)
    else:
        out = torch.bmm(p, v) if p.dim() == 3 else p @ v
    if c.loose == "two-values":
        out = out - p @ v.cos()
    if c.layout == "flat":
        out = out.view(*lead, *out.shape[-2:])
    if miss == "reused":
        return out + p.sum()
    return (out, p) if c.returned and not miss else out


def stepped(loose: str, s: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A step on the logits ``[..., T, S]`` that no reader knows."""
    if loose == "viewed":
        s.view(-1)[0].zero_()
        s[..., 0] = q.sum()
    if loose == "indexed":
        s[..., 0] = s[..., 0] * 2
    if loose == "clamped":
        s = s.clamp(-3.0, 2.0)
    if loose == "numbers":
        s = s.nan_to_num(neginf=-1e5)
    if loose == "top":
        s = s.masked_fill(s < s.topk(min(2, s.shape[-1]), -1).values[..., -1:], -math.inf)
    if loose == "second-product":
        s = s + torch.matmul(q.flip(-1), k.transpose(-2, -1))
    if loose == "stretched":
        s = s.sign() * s.abs().clamp(max=1e9).sqrt()
    if loose == "joined":
        s = torch.cat([s, torch.matmul(q, k.flip(-2).transpose(-2, -1)) * 0.3], -1)
    return s


def passed(loose: str, p: Tensor) -> Tensor:
    """A step on the weights ``[..., T, S]`` that leaves them weights."""
    if loose == "gated":
        return p * torch.linspace(0.5, 1.0, p.shape[-1], dtype=p.dtype)
    if loose == "clipped":
        return p.clamp(max=0.4)
    if loose == "cleared":
        return p.nan_to_num(0.0)
    return p


def scores(m: Attention, q: Tensor, k: Tensor) -> Tensor:
    """``q k^T`` in the case's spelling."""
    c, rank = m.case, q.dim()
    if c.miss in ("channel", "router", "pooling") or c.product in ("matmul", "linalg"):
        last = [*range(rank - 2), rank - 1, rank - 2]
        turned = {
            "transpose": lambda: k.transpose(-2, -1),
            "mT": lambda: k.mT,
            "permute": lambda: k.permute(last),
            "swapaxes": lambda: k.swapaxes(-1, -2),
        }[c.key]()
        return torch.linalg.matmul(q, turned) if c.product == "linalg" else q @ turned
    if c.product == "vecdot":
        return torch.linalg.vecdot(q.unsqueeze(-2), k.unsqueeze(-3))
    if c.product == "bmm":
        return torch.bmm(q, k.transpose(1, 2))
    if c.product == "baddbmm":
        empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype)
        return torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=m.d**-0.5)
    if c.layout == "tokens":
        q, k = q.transpose(-3, -2), k.transpose(-3, -2)
        return torch.einsum("xqhc,xkhc->xhqk", q, k)
    lead = "zyx"[: rank - 2]
    return torch.einsum(f"{lead}ic,{lead}jc->{lead}ij", q, k)


def masked(m: Attention, s: Tensor, keep: Tensor, bias: Tensor, pattern: Tensor) -> Tensor:
    """The case's mask on logits ``[B, (W,) H, T, S]``."""
    c = m.case
    t, n = s.shape[-2:]
    pads = keep.view(keep.shape[0], *([1] * (s.dim() - 2)), -1)
    add = (lambda x: x + s) if c.side == "left" else (lambda x: s + x)
    below = torch.ones(t, n, dtype=torch.bool).tril()
    zero = torch.zeros((), dtype=s.dtype)
    low = torch.finfo(s.dtype).min
    if c.mask == "causal-fill":
        return s.masked_fill(~below, -math.inf)
    if c.mask == "causal-where":
        return torch.where(torch.arange(n) <= torch.arange(t)[:, None], s, low)
    if c.mask == "causal-add":
        return add(torch.full((t, n), -math.inf, dtype=s.dtype).triu(1))
    if c.mask == "causal-buffer":
        return s.masked_fill(m.below[:t, :n] == 0, -math.inf)
    if c.mask == "window":
        i, j = torch.arange(t)[:, None], torch.arange(n)
        return s.masked_fill((j > i) | (j <= i - 2), low)
    if c.mask == "padding":
        return add(torch.where(pads, zero, low))
    if c.mask == "padding-fill":
        return s.masked_fill(pads.logical_not(), -1e9)
    if c.mask == "padding-in-place":
        s.masked_fill_(~pads, -math.inf)
        return s
    if c.mask == "both":
        return s.masked_fill(~(below & pads), low)
    if c.mask == "bias":
        return add(bias)
    if c.mask == "bias-and-padding":
        s = add(bias)
        return s + torch.where(pads, zero, low)
    if c.mask == "alibi":
        slope = torch.arange(1, m.h + 1, dtype=s.dtype).view(-1, 1, 1) / 8
        return add(slope * (torch.arange(n) - n).to(s.dtype))
    if c.mask == "arbitrary":
        return s.masked_fill(pattern.logical_not(), -math.inf)
    if c.mask == "keep-bool-float":
        return add((1.0 - pads.to(s.dtype)) * -1e30)
    return s


def weights(m: Attention, s: Tensor) -> Tensor:
    """Softmax in the case's spelling."""
    dim = {"rows": -2, "heads": 0 if s.dim() == 3 else 1}.get(m.case.miss, -1)
    if m.case.miss in ("rows", "heads"):
        return s.softmax(dim)
    kind = m.case.softmax
    if kind == "module":
        return m.soft(s)
    if kind == "method":
        return s.softmax(-1) if not m.case.wide else s.softmax(dim=-1, dtype=torch.float64)
    if kind == "hand":
        e = torch.exp(s - s.amax(-1, keepdim=True))
        return e / e.sum(-1, keepdim=True)
    if kind == "maximum":
        return F.softmax(s - s.max(-1, keepdim=True).values, -1)
    if kind == "log":
        return F.log_softmax(s, -1).exp()
    return F.softmax(s.to(torch.float64) if m.case.wide else s, dim=s.dim() - 1)
