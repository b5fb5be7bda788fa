"""The forms as plain differentiable torch operations, which the inner compiler fuses.

They hold whole score matrices and leave gradients to autograd: no registered operator is called.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnpass.kernels.activations import H
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.shapes import causal_mask, repeated


def pointwise(call: PointwiseCall) -> Tensor:
    """``[B, H, T, dv]`` in the dtype of the values; holds the ``[B, H, T, S]`` weights.

    Logits are rounded to the dtype of the queries. Slopes, lengths and a window are not supported:
    no form has them.
    """
    q, bias, keep, heads = call.q, call.bias, call.keep, call.q.shape[1]
    s = (q @ repeated(call.k, heads).transpose(-1, -2)) * call.scale  # [B, H, T, S]
    if bias is not None:
        finite = bias != -math.inf
        keep = finite if keep is None else keep & finite
        s = s + bias.masked_fill(~finite, 0.0)
    s = s if call.tau is None else s * call.tau.view(1, -1, 1, 1)
    s = s if call.offset is None else s + call.offset
    p = H[call.h].value(s)
    if call.causal:
        below = causal_mask(q, call.k)
        keep = below if keep is None else keep & below
    p = p if keep is None else p.masked_fill(~keep, 0.0)
    out = p.to(call.v.dtype) @ repeated(call.v, heads)
    return out if call.gain is None else (out * call.gain).to(call.v.dtype)


def hydra(call: HydraCall) -> Tensor:
    """``[B, H, T, d]`` in the dtype of the values; takes grouped keys and values, too."""
    heads, keep = call.q.shape[1], call.keep

    def unit(x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float64 else x.float()
        return x * (x * x).sum((1, 3), keepdim=True).clamp_min(call.eps).rsqrt()

    kv = unit(repeated(call.k, heads)) * repeated(call.v, heads)
    if keep is not None:
        kv = kv.masked_fill(~keep.transpose(-1, -2), 0.0)
    out = unit(call.q) * (kv.cumsum(2) if call.causal else kv.sum(2, keepdim=True))
    return (out if call.gain is None else out * call.gain).to(call.v.dtype)
