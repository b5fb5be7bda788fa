"""One call of an attention operator, as every implementation behind the operator takes it.

The operators themselves (``ops.py``) take flat arguments, because ``torch.library`` wants a flat
schema; all functions behind the operators take one of these records.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from attnpass.kernels.tile import Tile


class Sizes(NamedTuple):
    """The sizes of a pointwise call."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, eq=False)
class PointwiseCall:
    """``gain sum_s keep h(tau (scale q.k + bias) + offset) v``, ``[B, H, T, dv]`` (2409.04431).

    Attributes:
        q: queries ``[B, H, T, d]``.
        k: keys ``[B, G, S, d]``; query head i reads key/value head ``i // (H / G)``.
        v: values ``[B, G, S, dv]``.
        bias: float, broadcastable to ``[B, H, T, S]``; -inf masks the position.
        keep: bool, broadcastable to ``[B, H, T, S]``; applied after ``h``.
        tau: temperature > 0, float32 ``[H]``.
        offset: float32, broadcastable to ``[B, H, T, 1]``.
        gain: float32, broadcastable to ``[B, H, T, 1]``.
        scale: factor on the products of queries and keys.
        h: a key of ``activations.H`` or of ``activations.EXACT``; or ``activations.SOFTMAX``, for
            ``softmax(scale q.k + bias) v``, which has neither tau, offset, gain nor positions.
        causal: whether only the keys s <= t are kept.
        tile: how the kernel of this direction is launched.
        slopes: float32 ``[H]``; ``- slope |t - s|`` is added to the bias (ALiBi, 2108.12409).
            Slopes are constants and get no gradient.
        lengths: int ``[B]``; only the first ``lengths[b]`` keys of an item are kept.
        window: only the keys with ``|t - s| < window`` are kept; 0 keeps all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    keep: Tensor | None
    tau: Tensor | None
    offset: Tensor | None
    gain: Tensor | None
    scale: float
    h: str
    causal: bool
    tile: Tile
    slopes: Tensor | None = None
    lengths: Tensor | None = None
    window: int = 0

    @property
    def sizes(self) -> Sizes:
        """B, H, G, T, S, d and dv."""
        batch, heads, queries, head_dim = self.q.shape
        groups, keys = self.k.shape[1:3]
        return Sizes(batch, heads, groups, queries, keys, head_dim, self.v.shape[3])

    @property
    def positional(self) -> bool:
        """Whether a term depends on the positions of query and key beyond causality."""
        return self.slopes is not None or self.lengths is not None or self.window != 0


class PointwiseGradients(NamedTuple):
    """The gradients of a pointwise call's inputs, each of its input's shape and dtype.

    None where the call has no such input; ``bias`` is also None where nobody asked for it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    tau: Tensor | None
    offset: Tensor | None
    gain: Tensor | None


class Normalised(NamedTuple):
    """The result of softmax attention.

    Attributes:
        out: ``[B, H, T, dv]``; 0 in a row without a kept key.
        lse: the log-sum-exp of a row's logits, natural, float32 (float64 for float64)
            ``[B, H, T]``; -inf in a row without a kept key.
    """

    out: Tensor
    lse: Tensor


@dataclass(frozen=True, eq=False)
class HydraCall:
    """Hydra attention ``gain q^ * sum_s (k^ * v)``, ``[B, H, T, d]`` (2209.07484).

    ``x^`` is a token's row of all H * d features over its norm.

    Attributes:
        q: queries ``[B, H, T, d]``.
        k: keys ``[B, H, S, d]``; ``torch_whole`` alone also takes ``[B, G, S, d]``.
        v: values, of the shape of the keys.
        keep: bool ``[B|1, 1, 1, S]``.
        gain: float32 ``[1, H, 1, d]``.
        causal: whether the sum runs over s <= t alone, which needs T = S.
        eps: floor of the squared norm.
        tile: how the kernel is launched.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    keep: Tensor | None
    gain: Tensor | None
    causal: bool
    eps: float
    tile: Tile


class HydraGradients(NamedTuple):
    """The gradients of a hydra call's inputs; ``gain`` is None where the call has none."""

    q: Tensor
    k: Tensor
    v: Tensor
    gain: Tensor | None
