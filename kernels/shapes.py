"""Layouts and masks that every implementation of an attention operator shares.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def heads_last(q: Tensor, dv: int) -> Tensor:
    """An empty ``[B, H, T, dv]``, laid out as the output projection reads it: [B, T, H, dv]."""
    b, heads, t, _ = q.shape
    return q.new_empty((b, t, heads, dv)).transpose(1, 2)


def repeated(x: Tensor, heads: int) -> Tensor:
    """Grouped key/value heads repeated: ``[B, G, S, d]`` -> ``[B, H, S, d]``, without a copy."""
    group = heads // x.shape[1]
    if group == 1:
        return x
    return x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2)


def lowered(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    causal: bool,
    slopes: Tensor | None,
    lengths: Tensor | None,
    window: int,
) -> tuple[Tensor | None, Tensor | None]:
    """A bias and a mask that stand for slopes, lengths and window too; see ``ops.pointwise``."""
    t = torch.arange(q.shape[2], device=q.device).view(-1, 1)
    s = torch.arange(k.shape[2], device=q.device)
    masks = [] if keep is None else [keep]
    if lengths is not None:
        masks.append(s < lengths.view(-1, 1, 1, 1))
    if window:
        masks.append(t - s < window if causal else (t - s).abs() < window)
    if slopes is not None:
        far = slopes.float().view(-1, 1, 1) * -(t - s).abs()
        bias = far if bias is None else bias.float() + far
    return bias, functools.reduce(torch.logical_and, masks) if masks else None
