"""Launches the Triton kernels: strides, padded sizes and grids; the backward in plain torch.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnpass.kernels import tiled


def _power(n: int) -> int:
    """The least power of two >= ``n`` that a Triton dot accepts (16)."""
    return max(16, 1 << (n - 1).bit_length())


def _spread(x: Tensor | None, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """``x`` broadcast to ``shape`` without a copy, and its strides; zeros where there is none."""
    if x is None:
        return None, (0,) * len(shape)
    wide = x.expand(shape)
    return wide, wide.stride()


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
    from attnpass.kernels.pointwise_triton import pointwise_forward

    b, heads, t, d = q.shape
    s, dv = k.shape[2], v.shape[3]
    out = tiled.heads_last(q, dv)
    if out.numel() == 0:
        return out
    bias_x, bias_st = _spread(bias, (b, heads, t, s))
    keep_x, keep_st = _spread(None if keep is None else keep.view(torch.uint8), (b, heads, t, s))
    off_x, off_st = _spread(None if offset is None else offset.float(), (b, heads, t, 1))
    gain_x, gain_st = _spread(None if gain is None else gain.float(), (b, heads, t, 1))
    grid = (-(-t // tile[0]), b * heads)
    tf32 = q.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    pointwise_forward[grid](
        q,
        k,
        v,
        bias_x,
        keep_x,
        None if tau is None else tau.float(),
        off_x,
        gain_x,
        out,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *bias_st,
        *keep_st,
        *off_st[:3],
        *gain_st[:3],
        *out.stride()[:3],
        t,
        s,
        heads,
        heads // k.shape[1],
        scale,
        D=d,
        DV=dv,
        BLOCK_D=_power(d),
        BLOCK_DV=_power(dv),
        H=h,
        CAUSAL=causal,
        HAS_BIAS=bias is not None,
        HAS_KEEP=keep is not None,
        HAS_TAU=tau is not None,
        HAS_OFFSET=offset is not None,
        HAS_GAIN=gain is not None,
        PRECISION="tf32" if tf32 else "ieee",
        BLOCK_M=tile[0],
        BLOCK_N=tile[1],
        num_warps=tile[2],
        num_stages=tile[3],
    )
    return out


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
    """``[B, H, T, d]``; see ``ops.hydra``."""
    from attnpass.kernels.hydra_triton import hydra_apply, hydra_partial

    b, heads, t, d = q.shape
    s, features = k.shape[2], heads * d
    out = tiled.heads_last(q, d)
    if out.numel() == 0:
        return out
    block = max(16, min(tile[0], _power(max(1, 16384 // _power(features)))))
    keep_x, keep_st = _spread(None if keep is None else keep.view(torch.uint8), (b, 1, 1, s))
    chunks = -(-s // block)
    partial = torch.empty((b, chunks, features), dtype=torch.float32, device=q.device)
    shape = {"D": d, "HAS_KEEP": keep is not None, "BLOCK_M": block, "BLOCK_F": _power(features)}
    kv = (*k.stride(), *v.stride(), keep_st[0], keep_st[3])
    hydra_partial[(chunks, b)](k, v, keep_x, partial, *kv, s, chunks, features, eps, **shape)
    blocks = -(-t // block)
    before = (
        torch.cat([torch.zeros_like(partial[:, :1]), partial[:, :-1].cumsum(1)], 1)
        if causal
        else partial.sum(1, keepdim=True).expand(-1, blocks, -1)
    ).contiguous()
    hydra_apply[(blocks, b)](
        q,
        k,
        v,
        keep_x,
        before,
        out,
        *q.stride(),
        *kv,
        *out.stride()[:3],
        t,
        blocks,
        features,
        eps,
        CAUSAL=causal,
        **shape,
    )
    return out if gain is None else (out * gain).to(q.dtype)


# The Triton backward is not written yet: recomputation in torch runs on any device.
pointwise_backward, hydra_backward = tiled.pointwise_backward, tiled.hydra_backward
