"""Exact softmax attention as plain torch operations, where no kernel serves a call.

Whole score matrices are held, in float32 or, of float64 inputs, in float64.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

import math

from torch import Tensor

from attnpass.kernels.call import Normalised, PointwiseCall, PointwiseGradients
from attnpass.kernels.shapes import causal_mask, heads_last, repeated, wide


def _logits(call: PointwiseCall) -> Tensor:
    """``scale q.k + bias``, ``[B, H, T, S]``; -inf where a position is not kept."""
    s = wide(call.q) @ wide(repeated(call.k, call.q.shape[1])).transpose(-1, -2) * call.scale
    s = s if call.bias is None else s + call.bias.to(s.dtype)
    if call.keep is not None:
        s = s.masked_fill(~call.keep, -math.inf)
    return s.masked_fill(~causal_mask(call.q, call.k), -math.inf) if call.causal else s


def _weights(s: Tensor, lse: Tensor) -> Tensor:
    """``exp(s - lse)``; 0 in a row without a kept key."""
    return (s - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1)).exp()


def softmax(call: PointwiseCall) -> Normalised:
    """``softmax(scale q.k + bias) v`` and its log-sum-exp."""
    s = _logits(call)
    lse = s.logsumexp(-1)
    out = heads_last(call.q, call.v.shape[3])
    out.copy_(_weights(s, lse) @ wide(repeated(call.v, call.q.shape[1])))
    return Normalised(out, lse)


def row_sums(grad: Tensor, delta: Tensor, out: Tensor | None) -> Tensor:
    """``delta [B, H, T]`` and, where there is one, the products of ``out`` with ``grad``."""
    return delta if out is None else delta + (wide(grad) * wide(out)).sum(-1)


def softmax_backward(
    grad: Tensor, call: PointwiseCall, delta: Tensor, needs_bias: bool, out: Tensor | None = None
) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``; ``delta`` is ``[B, H, T]``.

    ``delta``, and where it is given the products of ``out [B, H, T, dv]`` with ``grad``, are what
    the weights of a row times their gradients sum up to. The log-sum-exp is that of the logits as
    they are rounded here: far from 0 another one would give other weights.
    """
    delta = row_sums(grad, delta, out)
    heads, groups = call.q.shape[1], call.k.shape[1]
    g = wide(grad)
    s = _logits(call)
    p = _weights(s, s.logsumexp(-1))
    ds = p * (g @ wide(repeated(call.v, heads)).transpose(-1, -2) - delta.unsqueeze(-1))

    def grouped(x: Tensor) -> Tensor:
        by_group: Tensor = x.unflatten(1, (groups, heads // max(1, groups)))
        return by_group.sum(2)

    bias = call.bias
    return PointwiseGradients(
        (ds @ wide(repeated(call.k, heads)) * call.scale).to(call.q.dtype),
        grouped(ds.transpose(-1, -2) @ wide(call.q) * call.scale).to(call.k.dtype),
        grouped(p.transpose(-1, -2) @ g).to(call.v.dtype),
        None if bias is None or not needs_bias else ds.sum_to_size(bias.shape).to(bias.dtype),
        None,
        None,
        None,
    )
