"""Plain torch, on any device: tiled over query rows and key columns, O(n) memory.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim; r = H / G.
Logits, h and sums are float32 (float64 for float64 inputs) whatever the input dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnpass.kernels.activations import H
from attnpass.kernels.shapes import heads_last, repeated


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _cut(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """The block of a tensor that broadcasts to ``[B, H, T, S]``."""
    x = x.view((1,) * (4 - x.dim()) + x.shape)
    x = x if x.shape[2] == 1 else x[:, :, rows]
    return x if x.shape[3] == 1 else x[:, :, :, columns]


def _sum_to(x: Tensor, shape: torch.Size) -> Tensor:
    """``x`` summed over the dimensions that ``shape`` broadcasts."""
    return x.sum_to_size(shape)


def _blocks(t: int, s: int, causal: bool, tile: list[int]) -> Iterator[tuple[slice, list[slice]]]:
    """Row blocks with the column blocks that hold at least one kept position."""
    for i in range(0, t, tile[0]):
        rows = slice(i, min(i + tile[0], t))
        end = min(s, rows.stop) if causal else s
        yield rows, [slice(j, min(j + tile[1], s)) for j in range(0, end, tile[1])]


class _Scores:
    """Logits before tau and offset, then after, and the kept positions, of one block."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        tau: Tensor | None,
        offset: Tensor | None,
        scale: float,
        causal: bool,
    ) -> None:
        self.q, self.k, self.bias, self.keep = q, k, bias, keep
        self.tau = None if tau is None else _wide(tau).view(1, -1, 1, 1)
        self.offset = None if offset is None else _wide(offset)
        self.scale, self.causal = scale, causal

    def __call__(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        raw = self.q[:, :, rows] @ self.k[:, :, columns].transpose(-1, -2) * self.scale
        mask = None if self.keep is None else _cut(self.keep, rows, columns)
        if self.bias is not None:
            bias = _wide(_cut(self.bias, rows, columns))
            finite = bias != -math.inf
            raw = raw + bias.where(finite, torch.zeros((), dtype=bias.dtype))
            mask = finite if mask is None else mask & finite
        if self.causal:
            t = torch.arange(rows.start, rows.stop, device=raw.device).view(-1, 1)
            below = torch.arange(columns.start, columns.stop, device=raw.device) <= t
            mask = below if mask is None else mask & below
        s = raw if self.tau is None else raw * self.tau
        if self.offset is not None:
            s = s + _cut(self.offset, rows, columns)
        return raw, s, mask


def pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    tau: Tensor | None,
    offset: Tensor | None,
    gain: Tensor | None,
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
) -> Tensor:
    """``[B, H, T, dv]``; see ``ops.pointwise``."""
    wide_q, wide_k, wide_v = (
        _wide(q),
        _wide(repeated(k, q.shape[1])),
        _wide(repeated(v, q.shape[1])),
    )
    scores = _Scores(wide_q, wide_k, bias, keep, tau, offset, scale, causal)
    out = heads_last(q, v.shape[3])
    for rows, columns in _blocks(q.shape[2], k.shape[2], causal, tile):
        total = wide_v.new_zeros((*q.shape[:2], rows.stop - rows.start, v.shape[3]))
        for column in columns:
            _, s, mask = scores(rows, column)
            p = H[h][0](s)
            total += (p if mask is None else p.masked_fill(~mask, 0.0)) @ wide_v[:, :, column]
        out[:, :, rows] = (total if gain is None else total * _cut(gain, rows, rows)).to(q.dtype)
    return out


def pointwise_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    tau: Tensor | None,
    offset: Tensor | None,
    gain: Tensor | None,
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
    needs_bias: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, bias, tau, offset, gain by recomputation of every block."""
    heads, g = q.shape[1], _wide(grad)
    wide_q, wide_k, wide_v = _wide(q), _wide(repeated(k, heads)), _wide(repeated(v, heads))
    scores = _Scores(wide_q, wide_k, bias, keep, tau, offset, scale, causal)
    dq, dk, dv = (
        torch.zeros_like(x, memory_format=torch.contiguous_format)
        for x in (wide_q, wide_k, wide_v)
    )
    dbias = (
        torch.zeros_like(bias, dtype=g.dtype, memory_format=torch.contiguous_format)
        if bias is not None and needs_bias
        else None
    )
    dtau = None if tau is None else torch.zeros_like(tau, dtype=g.dtype)
    doffset, dgain = (
        None
        if x is None
        else torch.zeros_like(x, dtype=g.dtype, memory_format=torch.contiguous_format)
        for x in (offset, gain)
    )
    value, slope = H[h]
    for rows, columns in _blocks(q.shape[2], k.shape[2], causal, tile):
        for column in columns:
            raw, s, mask = scores(rows, column)
            p = value(s) if mask is None else value(s).masked_fill(~mask, 0.0)
            dp = g[:, :, rows] @ wide_v[:, :, column].transpose(-1, -2)
            dp = dp if mask is None else dp.masked_fill(~mask, 0.0)
            if dgain is not None:
                part = _cut(dgain, rows, column)
                part += _sum_to(p * dp, part.shape)
            scaled = g[:, :, rows] if gain is None else g[:, :, rows] * _cut(gain, rows, column)
            dv[:, :, column] += p.transpose(-1, -2) @ scaled
            ds = dp * slope(s)
            ds = ds if gain is None else ds * _cut(gain, rows, column)
            ds = ds if mask is None else ds.masked_fill(~mask, 0.0)
            if dtau is not None:
                dtau += (ds * raw).sum((0, 2, 3))
            if doffset is not None:
                part = _cut(doffset, rows, column)
                part += _sum_to(ds, part.shape)
            ds = ds if scores.tau is None else ds * scores.tau
            if dbias is not None:
                part = _cut(dbias, rows, column)
                part += _sum_to(ds, part.shape)
            dq[:, :, rows] += ds @ wide_k[:, :, column] * scale
            dk[:, :, column] += ds.transpose(-1, -2) @ wide_q[:, :, rows] * scale
    group = heads // k.shape[1]
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
    rest = [(dbias, bias), (dtau, tau), (doffset, offset), (dgain, gain)]
    return [
        dq.to(q.dtype),
        dk.to(k.dtype),
        dv.to(v.dtype),
        *(q.new_empty(0) if d is None or x is None else d.to(x.dtype) for d, x in rest),
    ]


def hydra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None,
    causal: bool,
    eps: float,
    tile: list[int],
) -> Tensor:
    """``[B, H, T, d]``; see ``ops.hydra``. Row blocks bound the float32 copies."""
    b, heads, t, d = q.shape
    out = heads_last(q, d)
    total = torch.zeros((b, heads, 1, d), dtype=_wide(q[:, :, :0]).dtype)

    def unit(x: Tensor) -> Tensor:
        x = _wide(x)
        return x * (x * x).sum((1, 3), keepdim=True).clamp_min(eps).rsqrt()

    def products(rows: slice) -> Tensor:
        kv = unit(k[:, :, rows]) * _wide(v[:, :, rows])
        return kv if keep is None else kv * _cut(keep, slice(0, 1), rows).transpose(-1, -2)

    if not causal:
        for i in range(0, k.shape[2], tile[0]):
            total += products(slice(i, i + tile[0])).sum(2, keepdim=True)
    for i in range(0, t, tile[0]):
        rows = slice(i, i + tile[0])
        if causal:
            running = total + products(rows).cumsum(2)
            total = running[:, :, -1:]
        else:
            running = total
        x = unit(q[:, :, rows]) * running
        out[:, :, rows] = (x if gain is None else x * gain).to(q.dtype)
    return out


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` over its norm across heads and features, and the reciprocal norm ``[B, 1, T, 1]``."""
    square = (x * x).sum((1, 3), keepdim=True)
    r = square.clamp_min(eps).rsqrt()
    return x * r, r, square >= eps


def _unit_grad(grad: Tensor, unit: Tensor, r: Tensor, above: Tensor) -> Tensor:
    """Gradient through ``_unit``; below the floor the norm is a constant."""
    radial = (grad * unit).sum((1, 3), keepdim=True)
    return (grad - unit * radial * above) * r


def hydra_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None,
    causal: bool,
    eps: float,
    tile: list[int],
) -> list[Tensor]:
    """Gradients of q, k, v, gain; see ``ops.hydra_backward``."""
    (qn, rq, fq), (kn, rk, fk) = (_unit(_wide(x), eps) for x in (q, k))
    weight = kn if keep is None else kn * keep.transpose(-1, -2)
    kv = weight * _wide(v)
    total = kv.cumsum(2) if causal else kv.sum(2, keepdim=True)
    g = _wide(grad)
    dgain = q.new_empty(0)
    if gain is not None:
        dgain = (g * qn * total).sum((0, 2), keepdim=True).to(gain.dtype)
        g = g * gain
    dtotal = g * qn
    dkv = dtotal.flip(2).cumsum(2).flip(2) if causal else dtotal.sum(2, keepdim=True)
    dkn = dkv * _wide(v) if keep is None else dkv * _wide(v) * keep.transpose(-1, -2)
    dq = _unit_grad(g * total, qn, rq, fq)
    dk = _unit_grad(dkn, kn, rk, fk)
    return [dq.to(q.dtype), dk.to(k.dtype), (dkv * weight).to(v.dtype), dgain]
