"""The attention forms as small modules, usable without any compiler.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
All take ``forward(q [B,H,T,d], k [B,G,S,d], v [B,G,S,dv], bias, keep)`` and return
``[B,H,T,dv]``, but SkipAt, which maps a block output ``[B,T,D]`` to the next.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.forms.causal import _below


class Softmax(nn.Module):
    """``softmax(scale q k^T + bias) v`` as ``scaled_dot_product_attention``.

    Args:
        scale: factor on the logits.
        causal: keep only s <= t.
        fill: what the model sets masked logits to; ``None`` for boolean masks. It decides rows
            without any kept key: finite gives the mean of v, -inf NaN, ``None`` 0.
        added: the fill is added to the logits instead of set.
        dropout: drop probability on the weights, applied as given.
    """

    def __init__(
        self,
        *,
        scale: float,
        causal: bool = False,
        fill: float | None = None,
        added: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale, self.causal, self.fill, self.dropout = scale, causal, fill, dropout
        self.added = added

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """``[B, H, T, dv]``; ``bias`` float and ``keep`` bool broadcast to ``[B, H, T, S]``."""
        causal = self.causal
        if causal and (keep is not None or bias is not None):
            below = _below(q, k)
            keep, causal = below if keep is None else keep & below, False
        if bias is not None:
            bias = bias.view((1,) * (4 - bias.dim()) + bias.shape)
        if keep is not None:
            keep = keep.view((1,) * (4 - keep.dim()) + keep.shape)
        mask: Tensor | None = keep
        if bias is not None or (keep is not None and self.fill is not None):
            mask = q.new_zeros(()) if bias is None else bias.to(q.dtype)
            if keep is not None:
                fill = -math.inf if self.fill is None else self.fill
                if math.isfinite(fill):
                    # the least number swallows whatever it is added to: the logit is set
                    least = torch.finfo(q.dtype).min
                    fill = max(fill, least) if self.added else least
                mask = torch.where(keep, mask, fill)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        if keep is not None and self.fill == -math.inf:
            out = out.masked_fill(~keep.any(-1, keepdim=True), math.nan)
        return out


class SoftmaxWeights(nn.Module):
    """Softmax itself in its own place: proves that the place was read correctly."""

    def forward(self, s: Tensor, keep: Tensor | None = None) -> Tensor:
        """Weights ``[B, H, T, S]`` of logits likewise; in at least float32."""
        return s.to(torch.promote_types(s.dtype, torch.float32)).softmax(-1)
