"""The attention forms as small modules, usable without any compiler.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
All take ``forward(q [B,H,T,d], k [B,G,S,d], v [B,G,S,dv], bias, keep)`` and return
``[B,H,T,dv]``, but SkipAt, which maps a block output ``[B,T,D]`` to the next.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.errors import OptionError
from attnpass.kernels import aten
from attnpass.kernels.select import choose, choose_hydra
from attnpass.kernels.tile import ShapeClass, Tile, Tiles, default_tile
from attnpass.kernels.tiled import H
from attnpass.seeds import seeded
from attnpass.site import FORMS, AttentionSite

RELU_FAMILY = ("relu", "relu2", "gelu", "softplus", "identity", "relu6")
"""The h of form ``relu`` (2309.08586); ``sigmoid`` is the seventh, with its own form."""

HOMOGENEOUS = ("relu", "relu2", "identity")
"""h for which a temperature is redundant with the gain."""

LENGTHS = ("keys", "visible")
"""What L may count besides a number: all keys, or the keys this row may attend to."""


def _below(q: Tensor, k: Tensor) -> Tensor:
    """Causal positions s <= t as bool ``[T, S]``."""
    t = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
    return torch.arange(k.shape[2], device=q.device) <= t


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


class SoftmaxWeights(nn.Module):
    """Softmax itself in its own place: proves that the place was read correctly."""

    def forward(self, s: Tensor, keep: Tensor | None = None) -> Tensor:
        """Weights ``[B, H, T, S]`` of logits likewise; in at least float32."""
        return s.to(torch.promote_types(s.dtype, torch.float32)).softmax(-1)


class Hydra(nn.Module):
    """``g * q^ * sum_t (k^_t * v_t)`` over all D = H d features (2209.07484), O(T D).

    Args:
        heads: H. head_dim: d. causal: cumulative sum over t instead of the sum (T = S).
        eps: floor of the squared norms, so that a zero vector gives 0.
        trainable: whether ``gain [D]`` exists (else the constant 1).
        tile: launch parameters; ``None`` lets ``kernels.select`` choose.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        causal: bool = False,
        eps: float = 1e-6,
        trainable: bool = True,
        tile: Tile | None = None,
    ) -> None:
        super().__init__()
        self.causal, self.eps, self.tile = causal, eps, tile
        self.heads, self.head_dim = heads, head_dim
        self.gain = nn.Parameter(torch.ones(heads * head_dim)) if trainable else None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """``[B, H, T, d]``; ``keep`` bool ``[B|1, 1, 1, S]``; a bias cannot be expressed.

        Raises:
            OptionError: a bias, or a mask that depends on the query, was given.
        """
        if bias is not None:
            raise OptionError("expected no bias with hydra, got one; choose sigmoid or relu")
        if keep is not None and (keep.dim() < 4 or keep.shape[1] != 1 or keep.shape[2] != 1):
            raise OptionError(
                f"expected a key-padding mask [B, 1, 1, S] with hydra, got {tuple(keep.shape)}"
            )
        gain = None if self.gain is None else self.gain.view(1, self.heads, 1, self.head_dim)
        tile = choose_hydra(q, self.causal, self.tile)
        if tile.implementation == "aten":
            out = aten.hydra(q, k, v, keep, gain, self.causal, self.eps)
        else:
            from attnpass.kernels import ops

            group = self.heads // k.shape[1]
            k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k, v))
            out = ops.hydra(q, k, v, keep, gain, self.causal, self.eps, tile.as_list())
        return out


class SkipAt(nn.Module):
    """``Phi(Z)``: the previous attention block's output, transformed (2301.02240).

    ``Linear D -> rD, GELU, depthwise conv, GELU, Linear rD -> D, ECA``; r = 0 is the identity.
    On a patch grid the convolution is 2-D; else 1-D over tokens (our extension), left-padded where
    causal, and the ECA mean is then the running mean over tokens <= t.

    Args:
        width: D. r: expansion, 0, 0.5, 1, 2. kernel: odd size of the convolution.
        grid: rows and columns of patch tokens; ``None`` for a sequence.
        prefix: tokens before the patch tokens, which pass unchanged.
        causal: no row may see a later one.
        seed: of the random start of Phi, so that a start is reproducible.

    Raises:
        OptionError: ``r`` < 0 or an even ``kernel``.
    """

    def __init__(
        self,
        width: int,
        *,
        r: float = 0.0,
        kernel: int = 5,
        grid: tuple[int, int] | None = None,
        prefix: int = 0,
        causal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (
            isinstance(r, (int, float))
            and isinstance(kernel, int)
            and r >= 0
            and kernel % 2 == 1
            and kernel > 0
        ):
            raise OptionError(f"expected r >= 0 and an odd kernel, got r={r}, kernel={kernel}")
        self.hidden, self.kernel, self.prefix = round(r * width), kernel, prefix
        self.grid, self.causal = None if causal else grid, causal
        if self.hidden == 0:
            return
        with seeded(seed):
            self.up = nn.Linear(width, self.hidden)
            conv: Any = nn.Conv1d if self.grid is None else nn.Conv2d
            self.conv = conv(self.hidden, self.hidden, kernel, groups=self.hidden)
            self.down = nn.Linear(self.hidden, width)
            self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """The next block output ``[B, T, D]``; ``keep`` bool ``[B|1, 1, 1, T]``."""
        if self.hidden == 0:
            return z
        x, mask = z, None if keep is None else keep[:, 0, 0, :, None]  # [B, T, 1]
        if self.prefix:
            x = x[:, self.prefix :]
            mask = None if mask is None else mask[:, self.prefix :]
        x = linear_as(self.down, self._features(x, mask))
        x = x * self._channel_gate(x, mask)
        return torch.cat([z[:, : self.prefix], x], dim=1) if self.prefix else x

    def _features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What the last linear reads, ``[B, N, rD]``."""
        return F.gelu(self._mixed(x, mask))

    def _mixed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What the convolution gives, ``[B, N, rD]``."""
        x = F.gelu(linear_as(self.up, x))
        x = x if mask is None else x * mask
        weight, bias = (p.to(x.dtype) for p in (self.conv.weight, self.conv.bias))
        if self.grid is not None:
            rows = x.transpose(1, 2).unflatten(2, self.grid)
            rows = F.conv2d(rows, weight, bias, padding="same", groups=self.hidden)
            return rows.flatten(2).transpose(1, 2)
        # as shifted sums, so that nothing is transposed
        after = 0 if self.causal else self.kernel // 2
        padded = _in_memory(F.pad(x, (0, 0, self.kernel - 1 - after, after)))
        taps = _in_memory(weight[:, 0].T.contiguous())
        out: Tensor = bias
        for i, tap in enumerate(taps):
            out = out + padded[:, i : i + x.shape[1]] * tap
        return out

    def _channel_gate(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Efficient channel attention over ``x [B, N, D]``: ``[B, 1|N, D]`` in 0..1."""
        kept = torch.ones_like(x[:, :, :1]) if mask is None else mask.expand(x.shape[0], -1, -1)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        kept = kept.to(x.dtype)
        if self.causal:
            mean = (x * kept).cumsum(1) / kept.cumsum(1).clamp_min(1)
        else:
            mean = (x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        rows = mean.to(dtype).reshape(-1, 1, x.shape[2])  # [B*N, 1, D]
        gate = F.conv1d(rows, self.eca.weight.to(dtype), padding=self.eca.padding)
        return torch.sigmoid(gate).view(mean.shape)


def _in_memory(x: Tensor) -> Tensor:
    """``x``, which inductor then stores instead of computing it anew at every use."""
    return x.as_strided(x.shape, x.stride())


def linear_as(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's output in the dtype of ``x [..., D]``: Phi's parameters stay in float32."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {"learns": False},
    "sigmoid": {"L": None, "approximate": "none"},
    "relu": {"h": "relu", "alpha": 1.0, "L": None},
    "hydra": {},
    "skipat": {"r": 0.0, "kernel": 5},
}
"""Per form the options it takes and their defaults.

``L`` None: decided by the site's mask. ``learns``: softmax whose projections may have deltas.
"""


def check_names(form: str, options: dict[str, Any]) -> None:
    """Raise OptionError unless ``form`` exists and has all of ``options``."""
    if form not in FORMS:
        raise OptionError(f"expected a form of {', '.join(FORMS)}, got {form!r}")
    unknown = sorted(set(options) - set(OPTIONS[form]))
    if unknown:
        takes = ", ".join(OPTIONS[form]) or "no options"
        raise OptionError(f"expected options of form {form} ({takes}), got {', '.join(unknown)}")


def check_options(form: str, options: dict[str, Any]) -> None:
    """Raise OptionError unless ``form`` exists and takes all of ``options`` with their values."""
    check_names(form, options)
    if form == "softmax" and not isinstance(options.get("learns", False), bool):
        raise OptionError(f"expected learns to be true or false, got {options['learns']!r}")
    if form == "skipat":
        SkipAt(1, **options)
    elif form == "relu" and options.get("h", "relu") not in RELU_FAMILY:
        raise OptionError(f"expected h in {RELU_FAMILY}, got {options['h']!r}")
    elif form in ("sigmoid", "relu"):
        length = options.get("L")
        Pointwise(
            1,
            1,
            1,
            h=options.get("h", "sigmoid"),
            alpha=options.get("alpha", 1.0),
            approximate=options.get("approximate", "none"),
            length="keys" if length is None else length,
            trainable=False,
        )


def default_length(site: AttentionSite) -> str:
    """``visible`` where a causal or padding mask is proven, else ``keys``."""
    return "visible" if site.mask & {"causal", "padding"} else "keys"


def build(
    form: str,
    site: AttentionSite,
    options: dict[str, Any] | None = None,
    *,
    trainable: bool = True,
    tiles: Tiles | None = None,
) -> nn.Module:
    """The module of ``form`` for ``site``, parameters at their start.

    Raises:
        OptionError: unknown form or option, or a value out of range.
    """
    given = dict(options or {})
    check_options(form, given)
    o = {**OPTIONS[form], **given}
    causal, scale = "causal" in site.mask, 1.0 if site.scale is None else site.scale
    if form == "softmax" and (site.swapped or site.sink):
        return SoftmaxWeights()
    if form == "softmax":
        return Softmax(
            scale=scale, causal=causal, fill=site.fill, added=site.added, dropout=site.dropout
        )
    if form == "hydra":
        return Hydra(site.heads, site.head_dim, causal=causal, trainable=trainable)
    if form == "skipat":
        return SkipAt(
            site.width or 0,
            r=o["r"],
            kernel=o["kernel"],
            grid=site.grid,
            prefix=site.prefix if site.grid else 0,
            causal=causal,
        )
    kind = Weights if site.swapped else Pointwise
    return kind(
        site.heads,
        site.kv_heads,
        site.head_dim,
        h=o.get("h", "sigmoid"),
        scale=scale,
        causal=causal,
        length=default_length(site) if o["L"] is None else o["L"],
        alpha=o.get("alpha", 1.0),
        approximate=o.get("approximate", "none"),
        trainable=trainable,
        centred=not site.swapped,
        tiles=tiles,
    )


__all__ = [
    "OPTIONS",
    "Hydra",
    "Pointwise",
    "SkipAt",
    "Softmax",
    "Weights",
    "build",
    "check_options",
    "default_length",
]
