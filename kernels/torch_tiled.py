"""The operators in plain torch, on any device: tiled over queries and keys, O(n) memory.

Logits, h and sums are float32 (float64 for float64 inputs) whatever the input dtype. A call's
slopes, lengths and window must have been written as a bias and a mask before.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnpass.kernels.activations import H
from attnpass.kernels.call import (
    HydraCall,
    HydraGradients,
    PointwiseCall,
    PointwiseGradients,
)
from attnpass.kernels.shapes import heads_last, repeated, wide


def _cut(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """The block of a tensor that broadcasts to ``[B, H, T, S]``."""
    x = x.view((1,) * (4 - x.dim()) + x.shape)
    x = x if x.shape[2] == 1 else x[:, :, rows]
    return x if x.shape[3] == 1 else x[:, :, :, columns]


def _blocks(call: PointwiseCall) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of rows, each with the blocks of columns that hold at least one kept position."""
    t, s, m, n = call.q.shape[2], call.k.shape[2], call.tile.block_m, call.tile.block_n
    for i in range(0, t, m):
        rows = slice(i, min(i + m, t))
        end = min(s, rows.stop) if call.causal else s
        yield rows, [slice(j, min(j + n, s)) for j in range(0, end, n)]


class _Scores:
    """The wide inputs of a call, heads repeated, and the logits of any block of it."""

    def __init__(self, call: PointwiseCall) -> None:
        heads = call.q.shape[1]
        self.q = wide(call.q)
        self.k, self.v = (wide(repeated(x, heads)) for x in (call.k, call.v))
        # products take operands of one dtype, and a term may be wider than q
        self.tau, self.offset, self.gain = (
            None if x is None else x.to(self.q.dtype) for x in (call.tau, call.offset, call.gain)
        )
        self.tau = None if self.tau is None else self.tau.view(1, -1, 1, 1)
        self.call = call

    def block(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits before tau and offset, the logits after, and the kept positions."""
        call = self.call
        raw = self.q[:, :, rows] @ self.k[:, :, columns].transpose(-1, -2) * call.scale
        mask = None if call.keep is None else _cut(call.keep, rows, columns)
        if call.bias is not None:
            bias = _cut(call.bias, rows, columns).to(raw.dtype)
            finite = bias != -math.inf
            raw = raw + bias.masked_fill(~finite, 0.0)
            mask = finite if mask is None else mask & finite
        if call.causal:
            t = torch.arange(rows.start, rows.stop, device=raw.device).view(-1, 1)
            below = torch.arange(columns.start, columns.stop, device=raw.device) <= t
            mask = below if mask is None else mask & below
        s = raw if self.tau is None else raw * self.tau
        if self.offset is not None:
            s = s + _cut(self.offset, rows, columns)
        return raw, s, mask


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x``, 0 where ``mask`` is false."""
    return x if mask is None else x.masked_fill(~mask, 0.0)


def pointwise(call: PointwiseCall) -> Tensor:
    """``[B, H, T, dv]`` in the dtype of the queries; see ``PointwiseCall``."""
    scores, value = _Scores(call), H[call.h].value
    out = heads_last(call.q, call.v.shape[3])
    for rows, columns in _blocks(call):
        total = scores.v.new_zeros((*call.q.shape[:2], rows.stop - rows.start, call.v.shape[3]))
        for column in columns:
            _, s, mask = scores.block(rows, column)
            total += _masked(value(s), mask) @ scores.v[:, :, column]
        total = total if scores.gain is None else total * _cut(scores.gain, rows, rows)
        out[:, :, rows] = total.to(call.q.dtype)
    return out


def _zero_sums(scores: _Scores, dtype: torch.dtype, needs_bias: bool) -> PointwiseGradients:
    """Where blocks add to: gradients in ``dtype``, those of keys and values per query head."""
    call = scores.call

    def zeros(x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format)

    def zeros_of(x: Tensor | None) -> Tensor | None:
        return None if x is None else zeros(x)

    return PointwiseGradients(
        zeros(scores.q),
        zeros(scores.k),
        zeros(scores.v),
        zeros_of(call.bias if needs_bias else None),
        zeros_of(call.tau),
        zeros_of(call.offset),
        zeros_of(call.gain),
    )


def _finished(sums: PointwiseGradients, call: PointwiseCall) -> PointwiseGradients:
    """The sums in the dtypes of the inputs, query heads of one group put together."""
    groups = call.k.shape[1]
    group = call.q.shape[1] // max(1, groups)
    k, v = (x.unflatten(1, (groups, group)).sum(2) for x in (sums.k, sums.v))
    return PointwiseGradients(
        sums.q.to(call.q.dtype),
        k.to(call.k.dtype),
        v.to(call.v.dtype),
        _as(sums.bias, call.bias),
        _as(sums.tau, call.tau),
        _as(sums.offset, call.offset),
        _as(sums.gain, call.gain),
    )


def _as(x: Tensor | None, like: Tensor | None) -> Tensor | None:
    """``x`` in the dtype of ``like``; None without either."""
    return None if x is None or like is None else x.to(like.dtype)


def _add(total: Tensor | None, block: Tensor, rows: slice, columns: slice) -> None:
    """Add a block ``[B, H, rows, columns]`` to a gradient, summed over what this broadcasts."""
    if total is not None:
        part = _cut(total, rows, columns)
        part += block.sum_to_size(part.shape)


def pointwise_backward(grad: Tensor, call: PointwiseCall, needs_bias: bool) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``, by recomputation of every block of weights."""
    grad, scores = wide(grad), _Scores(call)
    sums = _zero_sums(scores, grad.dtype, needs_bias)
    for rows, columns in _blocks(call):
        for column in columns:
            _add_block(sums, scores, grad, rows, column)
    return _finished(sums, call)


def _add_block(
    sums: PointwiseGradients, scores: _Scores, grad: Tensor, rows: slice, column: slice
) -> None:
    """Add what one block of scores contributes to every gradient."""
    call, h = scores.call, H[scores.call.h]
    raw, s, mask = scores.block(rows, column)
    p = _masked(h.value(s), mask)
    g = grad[:, :, rows]
    dp = _masked(g @ scores.v[:, :, column].transpose(-1, -2), mask)
    if sums.gain is not None:
        _add(sums.gain, p * dp, rows, column)
    gain = None if scores.gain is None else _cut(scores.gain, rows, column)
    sums.v[:, :, column].add_(p.transpose(-1, -2) @ (g if gain is None else g * gain))
    ds = dp * h.slope(s)
    ds = _masked(ds if gain is None else ds * gain, mask)
    if sums.tau is not None:
        sums.tau.add_((ds * raw).sum((0, 2, 3)))
    _add(sums.offset, ds, rows, column)
    ds = ds if scores.tau is None else ds * scores.tau
    _add(sums.bias, ds, rows, column)
    sums.q[:, :, rows].add_(ds @ scores.k[:, :, column] * call.scale)
    sums.k[:, :, column].add_(ds.transpose(-1, -2) @ scores.q[:, :, rows] * call.scale)


def hydra(call: HydraCall) -> Tensor:
    """``[B, H, T, d]`` in the dtype of the queries; blocks of rows bound the float32 copies."""
    q, k, v, keep, step = call.q, call.k, call.v, call.keep, call.tile.block_m
    b, heads, t, d = q.shape
    out = heads_last(q, d)
    total = q.new_zeros((b, heads, 1, d), dtype=wide(q[:, :, :0]).dtype)

    def unit(x: Tensor) -> Tensor:
        return _unit(wide(x), call.eps)[0]

    def products(rows: slice) -> Tensor:
        kv = unit(k[:, :, rows]) * wide(v[:, :, rows])
        return kv if keep is None else kv * _cut(keep, slice(0, 1), rows).transpose(-1, -2)

    if not call.causal:
        for i in range(0, k.shape[2], step):
            total += products(slice(i, i + step)).sum(2, keepdim=True)
    for i in range(0, t, step):
        rows = slice(i, i + step)
        if call.causal:
            running = total + products(rows).cumsum(2)
            total = running[:, :, -1:]
        else:
            running = total
        x = unit(q[:, :, rows]) * running
        out[:, :, rows] = (x if call.gain is None else x * call.gain).to(q.dtype)
    return out


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens over their norm, the reciprocal norms and whether these exceed the floor.

    The norm runs over heads and features: the last two are ``[B, 1, T, 1]``.
    """
    square = (x * x).sum((1, 3), keepdim=True)
    r = square.clamp_min(eps).rsqrt()
    return x * r, r, square >= eps


def _unit_grad(grad: Tensor, unit: Tensor, r: Tensor, above: Tensor) -> Tensor:
    """The gradient through ``_unit``; below the floor the norm is a constant."""
    radial = (grad * unit).sum((1, 3), keepdim=True)
    return (grad - unit * radial * above) * r


def hydra_backward(grad: Tensor, call: HydraCall) -> HydraGradients:
    """The gradients for ``grad [B, H, T, d]``; see ``HydraCall``."""
    q, k, v, keep, gain = call.q, call.k, call.v, call.keep, call.gain
    (qn, rq, fq), (kn, rk, fk) = (_unit(wide(x), call.eps) for x in (q, k))
    weight = kn if keep is None else kn * keep.transpose(-1, -2)
    kv = weight * wide(v)
    total = kv.cumsum(2) if call.causal else kv.sum(2, keepdim=True)
    g, dgain = wide(grad), None
    if gain is not None:
        dgain = (g * qn * total).sum((0, 2), keepdim=True).to(gain.dtype)
        g = g * gain
    dtotal = g * qn
    dkv = dtotal.flip(2).cumsum(2).flip(2) if call.causal else dtotal.sum(2, keepdim=True)
    dkn = dkv * wide(v) if keep is None else dkv * wide(v) * keep.transpose(-1, -2)
    dq = _unit_grad(g * total, qn, rq, fq)
    dk = _unit_grad(dkn, kn, rk, fk)
    return HydraGradients(dq.to(q.dtype), dk.to(k.dtype), (dkv * weight).to(v.dtype), dgain)
