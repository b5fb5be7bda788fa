"""The forms as plain differentiable torch operations, which the inner compiler fuses.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnpass.kernels.activations import H
from attnpass.kernels.shapes import repeated


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
) -> Tensor:
    """``[B, H, T, dv]``; see ``ops.pointwise``. Holds the ``[B, H, T, S]`` weights."""
    heads = q.shape[1]
    s = (q @ repeated(k, heads).transpose(-1, -2)) * scale  # [B, H, T, S]
    if bias is not None:
        finite = bias != -math.inf
        keep = finite if keep is None else keep & finite
        s = s + bias.masked_fill(~finite, 0.0)
    s = s if tau is None else s * tau.view(1, -1, 1, 1)
    s = s if offset is None else s + offset
    p = H[h][0](s)
    if causal:
        t = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
        below = torch.arange(k.shape[2], device=q.device) <= t
        keep = below if keep is None else keep & below
    p = p if keep is None else p.masked_fill(~keep, 0.0)
    out = p.to(v.dtype) @ repeated(v, heads)
    return out if gain is None else (out * gain).to(v.dtype)


def hydra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None,
    causal: bool,
    eps: float,
) -> Tensor:
    """``[B, H, T, d]``; see ``ops.hydra``."""

    def unit(x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float64 else x.float()
        return x * (x * x).sum((1, 3), keepdim=True).clamp_min(eps).rsqrt()

    kv = unit(repeated(k, q.shape[1])) * repeated(v, q.shape[1])
    if keep is not None:
        kv = kv.masked_fill(~keep.transpose(-1, -2), 0.0)
    out = unit(q) * (kv.cumsum(2) if causal else kv.sum(2, keepdim=True))
    return (out if gain is None else out * gain).to(v.dtype)
