"""Attention with a pointwise function h in the place of softmax, as modules.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnpass.errors import OptionError
from attnpass.forms.options import check_value
from attnpass.kernels import torch_whole
from attnpass.kernels.activations import H
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.select import choose, default_tile
from attnpass.kernels.shapes import causal_mask
from attnpass.kernels.tile import Tile, Tiles, measured
from attnpass.text import shown

HOMOGENEOUS = ("relu", "relu2", "identity")
"""The h with ``h(tau x) = tau^n h(x)``: the gain makes a temperature redundant."""


class Pointwise(nn.Module):
    """``g L^-a h(tau s + b) v``: sigmoid attention (2409.04431) and relu/L (2309.08586).

    ``s = scale q (k - k0)^T + bias``. For sigmoid, L enters as ``-log L`` in the logits and there
    is no power. Parameters (``trainable``): ``log_tau [H]`` where h is not homogeneous, ``b [H]``,
    ``gain [H]``, ``k0 [G, d]``; otherwise the constants 0, 0, 1, 0.

    Args:
        heads: H.
        kv_heads: G.
        head_dim: d.
        h: a key of ``kernels.activations.H``.
        scale: factor on the products of queries and keys; ``None`` stands for ``d^-1/2``.
        causal: whether only the keys s <= t are kept.
        length: L: ``keys`` counts S, ``visible`` the kept keys of a row; or a number > 0.
        alpha: the power of L; sigmoid does not use it.
        approximate: ``tanh`` computes sigmoid by a GPU's own tanh, quicker and coarse
            (docs/kernels.md).
        trainable: whether the parameters exist.
        centred: whether ``k0`` is among the parameters.
        tile: launch parameters of both directions; ``None`` takes the measured ones, else the
            defaults.
        tiles: measured launch parameters.

    Raises:
        OptionError: an unknown ``h``, or a value of another option that it may not have.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        h: str,
        scale: float | None = None,
        causal: bool = False,
        length: str | float = "keys",
        alpha: float = 1.0,
        approximate: str = "none",
        trainable: bool = True,
        centred: bool = True,
        tile: Tile | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(h, str) or h not in H:
            raise OptionError(f"expected h in {tuple(H)}, got {shown(h)}")
        for name, value in (("L", length), ("alpha", alpha), ("approximate", approximate)):
            check_value(name, value)
        self.h, self.causal, self.length, self.alpha = h, causal, length, alpha
        self.approximate = approximate
        self.tile, self.tiles = tile, tiles
        self.scale = head_dim**-0.5 if scale is None else scale

        def new(*shape: int, value: float = 0.0) -> nn.Parameter | None:
            return nn.Parameter(torch.full(shape, value)) if trainable else None

        self.log_tau = None if h in HOMOGENEOUS else new(heads)
        self.b, self.gain = new(heads), new(heads, value=1.0)
        self.k0 = new(kv_heads, head_dim) if centred else None

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
        if self.k0 is not None:
            k = k - self.k0.to(k.dtype).unsqueeze(1)  # [G, 1, d]
        tau, offset, gain = self._terms(self.row_lengths(q, k, keep))
        call = (q, k, v, bias, keep)
        tile = choose(
            q,
            k,
            self.tile,
            measured(self.tiles, "forward", *call, h=self.h, causal=self.causal),
            causal=self.causal,
        )
        terms = (bias, keep, tau, offset, gain, self.scale)
        if tile.implementation == "aten":
            return torch_whole.pointwise(PointwiseCall(q, k, v, *terms, self.h, self.causal, tile))
        # registers the operators, which takes time: when a module first needs them
        from attnpass.kernels import ops

        grad = self.tile or measured(self.tiles, "backward", *call, h=self.h, causal=self.causal)
        grad = grad or default_tile(q.device.type, q.shape[3], "backward", q.dtype)
        h = "sigmoid_tanh" if self.approximate == "tanh" else self.h
        tiles = (tile.as_list(), grad.as_list())
        out: Tensor = ops.pointwise(q, k, v, *terms, h, self.causal, *tiles)
        return out

    def _terms(self, length: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Tau ``[H]``, then offset and gain ``[.., 1]`` per row, from the rows' length L."""
        tau = None if self.log_tau is None else self.log_tau.exp()
        offset = None if self.b is None else self.b.view(1, -1, 1, 1)
        gain = None if self.gain is None else self.gain.view(1, -1, 1, 1)
        if self.h == "sigmoid":
            return tau, -length.log() if offset is None else offset - length.log(), gain
        power = length.pow(-self.alpha)
        return tau, offset, power if gain is None else gain * power

    def row_lengths(
        self, q: Tensor, k: Tensor, keep: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """L of every row, broadcastable to ``[B, H, T, 1]``, at least 1 where counted."""
        t, s = q.shape[2], k.shape[2]
        if isinstance(self.length, (int, float)):
            value = float(self.length)
            return torch.full((1, 1, 1, 1), value, dtype=dtype, device=q.device)
        if self.length == "keys" or (keep is None and not self.causal):
            one = torch.ones((1, 1, 1, 1), dtype=dtype, device=q.device)
            counted: Tensor = one * torch.sym_max(s, 1)
            return counted
        if keep is None:
            rows = torch.arange(1, t + 1, device=q.device, dtype=dtype)
            return rows.clamp_max(s).clamp_min(1.0).view(1, 1, -1, 1)
        count = (keep & causal_mask(q, k)) if self.causal else keep.expand(*keep.shape[:-1], s)
        return count.sum(-1, keepdim=True, dtype=dtype).clamp_min(1.0)


class Weights(Pointwise):
    """The weights ``g L^-a h(tau s + b)`` of given logits, in the place of softmax alone.

    Other than softmax's, the weights of a row do not sum to 1.
    """

    def forward(  # type: ignore[override]
        self, s: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Weights ``[B, H, T, S]`` of logits ``s [B, H, T, S]``, in at least float32.

        Masked logits are -inf, or a fill that ``keep`` tells apart.
        """
        wide = torch.promote_types(s.dtype, torch.float32)
        tau, offset, gain = self._terms(self.row_lengths(s, s.transpose(2, 3), keep, wide))
        dead = s == -math.inf if keep is None else (s == -math.inf) | ~keep
        if self.causal:
            dead = dead | ~causal_mask(s, s.transpose(2, 3))
        x = s.masked_fill(dead, 0.0).to(wide)
        x = x if tau is None else x * tau.view(1, -1, 1, 1)
        p = H[self.h].value(x if offset is None else x + offset).masked_fill(dead, 0.0)
        return p if gain is None else p * gain
