"""The attention forms as small modules, usable without any compiler.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
All take ``forward(q [B,H,T,d], k [B,G,S,d], v [B,G,S,dv], bias, keep)`` and return
``[B,H,T,dv]``, but SkipAt, which maps a block output ``[B,T,D]`` to the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnpass.errors import OptionError
from attnpass.forms.causal import _below
from attnpass.kernels import torch_whole as aten
from attnpass.kernels.activations import H
from attnpass.kernels.select import choose, default_tile
from attnpass.kernels.tile import ShapeClass, Tile, Tiles

RELU_FAMILY = ("relu", "relu2", "gelu", "softplus", "identity", "relu6")
"""The h of form ``relu`` (2309.08586); ``sigmoid`` is the seventh, with its own form."""

HOMOGENEOUS = ("relu", "relu2", "identity")
"""h for which a temperature is redundant with the gain."""

LENGTHS = ("keys", "visible")
"""What L may count besides a number: all keys, or the keys this row may attend to."""


class Pointwise(nn.Module):
    """``g L^-a h(tau s + b) v``: sigmoid attention (2409.04431) and relu/L (2309.08586).

    ``s = scale q (k - k0)^T + bias``. For sigmoid, L enters as ``-log L`` in the logits and there
    is no power. Parameters (``trainable``): ``log_tau [H]`` where h is not homogeneous, ``b [H]``,
    ``gain [H]``, ``k0 [G, d]``; otherwise the constants 0, 0, 1, 0.

    Args:
        heads: H. kv_heads: G. head_dim: d.
        h: one of ``sigmoid`` and ``RELU_FAMILY``.
        scale: factor on the logits. causal: keep only s <= t.
        length: what L counts: ``keys``, ``visible`` (kept keys of the row) or a number.
        alpha: the power of L; unused by sigmoid.
        approximate: ``tanh``: sigmoid by a GPU's own tanh, quicker and coarse (docs/kernels.md).
        trainable: whether the parameters exist.
        centred: whether ``k0`` is among them.
        tile: launch parameters of both directions; ``None``: as measured, else the default.
        tiles: measured launch parameters.

    Raises:
        OptionError: unknown ``h`` or ``length``.
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
        if h != "sigmoid" and h not in RELU_FAMILY:
            raise OptionError(f"expected h in {('sigmoid', *RELU_FAMILY)}, got {h!r}")
        if length not in LENGTHS and not (isinstance(length, (int, float)) and length > 0):
            raise OptionError(
                f"expected L to be 'keys', 'visible' or a number > 0, got {length!r}"
            )
        if not (isinstance(alpha, (int, float)) and math.isfinite(alpha)):
            raise OptionError(f"expected a finite alpha, got {alpha!r}")
        if approximate not in ("none", "tanh"):
            raise OptionError(f"expected approximate 'none' or 'tanh', got {approximate!r}")
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
        """``[B, H, T, dv]``; ``bias`` float and ``keep`` bool broadcast to ``[B, H, T, S]``."""
        if self.k0 is not None:
            k = k - self.k0.to(k.dtype).unsqueeze(1)  # [G, 1, d]
        tau, offset, gain = self._terms(self._length(q, k, keep))
        tile = choose(q, k, self.tile, self._measured("forward", q, k, v, bias, keep))
        if tile.implementation == "aten":
            terms = (bias, keep, tau, offset, gain, self.scale, self.h, self.causal)
            return aten.pointwise(q, k, v, *terms)
        from attnpass.kernels import ops

        grad = self.tile or self._measured("backward", q, k, v, bias, keep)
        grad = grad or default_tile(q.device.type, q.shape[3], "backward", q.dtype)
        h = "sigmoid_tanh" if self.approximate == "tanh" else self.h
        rest = (self.scale, h, self.causal, tile.as_list(), grad.as_list())
        out: Tensor = ops.pointwise(q, k, v, bias, keep, tau, offset, gain, *rest)
        return out

    def _measured(
        self,
        direction: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
    ) -> Tile | None:
        """The tile that was measured for calls like this one."""
        if not self.tiles:
            return None
        kind = ShapeClass.of(q, k, v, bias, keep, self.h, self.causal, direction)
        return self.tiles.get(str(kind))

    def _terms(self, length: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Tau ``[H]``, then offset and gain that broadcast to ``[B, H, T, 1]``, from L."""
        tau = None if self.log_tau is None else self.log_tau.exp()
        offset = None if self.b is None else self.b.view(1, -1, 1, 1)
        gain = None if self.gain is None else self.gain.view(1, -1, 1, 1)
        if self.h == "sigmoid":
            return tau, -length.log() if offset is None else offset - length.log(), gain
        power = length.pow(-self.alpha)
        return tau, offset, power if gain is None else gain * power

    def _length(self, q: Tensor, k: Tensor, keep: Tensor | None) -> Tensor:
        """L as float32, broadcastable to ``[B, H, T, 1]``, at least 1."""
        t, s = q.shape[2], k.shape[2]
        if isinstance(self.length, (int, float)):
            value = float(self.length)
            return torch.full((1, 1, 1, 1), value, dtype=torch.float32, device=q.device)
        if self.length == "keys" or (keep is None and not self.causal):
            one = torch.ones((1, 1, 1, 1), dtype=torch.float32, device=q.device)
            return one * torch.sym_max(s, 1)  # type: ignore[no-any-return]
        if keep is None:
            rows = torch.arange(1, t + 1, device=q.device, dtype=torch.float32)
            return rows.clamp_max(s).clamp_min(1.0).view(1, 1, -1, 1)
        count = (keep & _below(q, k)) if self.causal else keep.expand(*keep.shape[:-1], s)
        return count.sum(-1, keepdim=True, dtype=torch.float32).clamp_min(1.0)


class Weights(Pointwise):
    """The same on given logits, in place of softmax alone; its weights do not sum to 1."""

    def forward(  # type: ignore[override]
        self, s: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Weights ``[B, H, T, S]`` of logits likewise, masked ones set to -inf or a fill.

        In at least float32.
        """
        tau, offset, gain = self._terms(self._length(s, s.transpose(2, 3), keep))
        dead = s == -math.inf if keep is None else (s == -math.inf) | ~keep
        if self.causal:
            dead = dead | ~_below(s, s.transpose(2, 3))
        x = s.masked_fill(dead, 0.0).to(torch.promote_types(s.dtype, torch.float32))
        x = x if tau is None else x * tau.view(1, -1, 1, 1)
        p = H[self.h][0](x if offset is None else x + offset).masked_fill(dead, 0.0)
        return p if gain is None else p * gain
