"""Softmax attention as a module, and softmax alone: the lossless forms.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.select import can_run_softmax, choose_softmax, default_tile
from attnpass.kernels.shapes import causal_mask, repeated
from attnpass.kernels.tile import Tile, Tiles, measured


class Softmax(nn.Module):
    """``softmax(scale q k^T + bias) v`` by the quicker of our kernel and torch's fused operator.

    Args:
        scale: factor on the products of queries and keys.
        causal: whether only the keys s <= t are kept.
        fill: the value of masked logits in the original model; ``None`` for boolean masks. It
            decides the result of rows without any kept key: the mean of v for a finite fill, NaN
            for -inf, 0 for ``None``.
        added: whether the model adds the fill to the logits instead of setting them.
        dropout: drop probability of the weights, also when the module is in evaluation mode.
        tile: what runs, whatever the call; without it each call's sizes decide.
        tiles: measured launch parameters, which decide before the sizes.
    """

    def __init__(
        self,
        *,
        scale: float,
        causal: bool = False,
        fill: float | None = None,
        added: bool = False,
        dropout: float = 0.0,
        tile: Tile | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__()
        self.tile, self.tiles = tile, tiles
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
        """``[B, H, T, dv]`` from ``q [B, H, T, d]``, ``k [B, G, S, d]`` and ``v [B, G, S, dv]``.

        ``bias`` is float and ``keep`` bool; both broadcast to ``[B, H, T, S]``.
        """
        masked, call = keep is not None, (q, k, v, bias, keep)
        tile = self.tile or self.choose(
            *(q, q.shape[2], k.shape[2]),
            masked=masked,
            known=measured(self.tiles, "forward", *call, h=SOFTMAX, causal=self.causal),
        )
        if tile.implementation == "fused":
            return self._by_kernel(q, k, v, bias, keep, tile)
        causal = self.causal
        if causal and (keep is not None or bias is not None):
            below = causal_mask(q, k)
            keep, causal = below if keep is None else keep & below, False
        if bias is not None:
            bias = bias.view((1,) * (4 - bias.dim()) + bias.shape)
        if keep is not None:
            keep = keep.view((1,) * (4 - keep.dim()) + keep.shape)
        # a bias of more digits than the queries makes logits of as many
        wide = q.dtype if bias is None else torch.promote_types(q.dtype, bias.dtype)
        narrow, (q, k, v) = q.dtype, (x.to(wide) for x in (q, k, v))
        mask: Tensor | None = keep
        if bias is not None or (keep is not None and self.fill is not None):
            mask = q.new_zeros(()) if bias is None else bias.to(wide)
            if keep is not None:
                fill = -math.inf if self.fill is None else self.fill
                # adding the least number of the dtype gives that number: the logit is set
                least = torch.finfo(wide).min
                if not math.isfinite(fill):
                    mask = torch.where(keep, mask, fill)
                elif self.added:
                    mask = torch.where(keep, mask, mask + max(fill, least))
                else:
                    mask = torch.where(keep, mask, least)
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
        return out.to(narrow)

    def choose(
        self,
        q: Tensor,
        queries: int | torch.SymInt,
        keys: int | torch.SymInt,
        *,
        masked: bool,
        trained: bool = False,
        known: Tile | None = None,
    ) -> Tile:
        """The tile of a call, ``aten`` for torch's own fused operator.

        Args:
            q: queries, features last. queries, keys: how many in each head. masked: ``keep`` is
                given. trained: gradients are recorded. known: the tile measured for such calls.

        The kernel knows no dropout, and for it a masked position counts nothing at all.
        """
        filled = masked and self.fill is not None and math.isfinite(self.fill)
        if self.dropout > 0 or (filled and self.added):
            return Tile("aten")
        if known is not None and can_run_softmax(q, self.scale):
            return known
        return choose_softmax(q, queries, keys, self.scale, causal=self.causal, trained=trained)

    def _by_kernel(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        tile: Tile,
    ) -> Tensor:
        """By the operator ``attnpass::softmax``; rows without a kept key as ``fill`` says."""
        from attnpass.kernels import ops

        grad = measured(
            *(self.tiles, "backward", q, k, v, bias, keep), h=SOFTMAX, causal=self.causal
        )
        grad = grad or default_tile(q.device.type, q.shape[3], "backward", q.dtype)
        tiles = tile.as_list(), grad.as_list()
        out: Tensor
        out, lse = ops.softmax(q, k, v, bias, keep, self.scale, self.causal, *tiles)
        if self.fill is None or keep is None:
            return out
        empty = (lse == -math.inf).unsqueeze(-1)
        if not math.isfinite(self.fill):
            return out.masked_fill(empty, math.nan)
        return torch.where(empty, repeated(v.mean(2, keepdim=True), q.shape[1]), out)


class SoftmaxWeights(nn.Module):
    """Softmax in the place of the model's softmax alone, its logits and values left as they are.

    Converting a site to this module changes nothing, which proves that the site was read well.
    """

    def forward(self, s: Tensor, keep: Tensor | None = None) -> Tensor:
        """Weights ``[B, H, T, S]`` of logits ``s [B, H, T, S]``, in at least float32.

        The logits are masked already; ``keep`` exists for the signature of ``Weights``.
        """
        return s.to(torch.promote_types(s.dtype, torch.float32)).softmax(-1)
