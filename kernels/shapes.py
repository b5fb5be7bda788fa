"""Layouts, masks and grouped heads, as all implementations of the operators share them.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from attnpass.kernels.call import PointwiseCall


def heads_last(q: Tensor, dv: int) -> Tensor:
    """An uninitialised ``[B, H, T, dv]`` in the memory order ``[B, T, H, dv]``.

    The output projection reads the heads of a token side by side.
    """
    b, heads, t, _ = q.shape
    return q.new_empty((b, t, heads, dv)).transpose(1, 2)


def wide(x: Tensor) -> Tensor:
    """``x`` in the dtype of logits and sums: float32, or float64 for float64."""
    return x if x.dtype == torch.float64 else x.float()


def repeated(x: Tensor, heads: int) -> Tensor:
    """Grouped key/value heads repeated: ``[B, G, S, d]`` -> ``[B, H, S, d]``, without a copy."""
    group = heads // max(1, x.shape[1])
    if group == 1:
        return x
    return x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2)


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """The positions s <= t as bool ``[T, S]``."""
    t = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
    return torch.arange(k.shape[2], device=q.device) <= t


def without_positions(call: PointwiseCall) -> PointwiseCall:
    """The same call with slopes, lengths and window written as a bias and a mask."""
    t = torch.arange(call.q.shape[2], device=call.q.device).view(-1, 1)
    s = torch.arange(call.k.shape[2], device=call.q.device)
    bias, masks = call.bias, [] if call.keep is None else [call.keep]
    if call.lengths is not None:
        masks.append(s < call.lengths.view(-1, 1, 1, 1))
    if call.window:
        near = t - s if call.causal else (t - s).abs()
        masks.append(near < call.window)
    if call.slopes is not None:
        dtype = torch.promote_types(call.q.dtype, torch.float32)
        alibi = call.slopes.to(dtype).view(-1, 1, 1) * -(t - s).abs()
        bias = alibi if bias is None else bias.to(dtype) + alibi
    keep = functools.reduce(torch.logical_and, masks) if masks else None
    return replace(call, bias=bias, keep=keep, slopes=None, lengths=None, window=0)
