"""The oracle: every form as an einsum in float64, written to be read.

No fast path imports this module, and it imports no other of ours: its list of functions h is its
own on purpose. Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

H_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "identity": lambda x: x,
    "relu6": F.relu6,
}
"""Every h of the pointwise family (2309.08586)."""


def grouped(x: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated to ``heads``: ``[B, G, S, d]`` -> ``[B, H, S, d]``."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def kept(keep: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Tensor:
    """Attended positions as bool ``[B, H, T, S]``."""
    t, s = q.shape[2], k.shape[2]
    full = torch.ones(q.shape[0], q.shape[1], t, s, dtype=torch.bool, device=q.device)
    if causal:
        full = full & torch.ones(t, s, dtype=torch.bool, device=q.device).tril()
    return full if keep is None else full & keep


def softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    *,
    scale: float,
    causal: bool,
    fill: float,
) -> Tensor:
    """Softmax attention ``[B, H, T, dv]`` in float64, masked logits set to ``fill``."""
    k, v = grouped(k, q.shape[1]), grouped(v, q.shape[1])
    s = torch.einsum("bhtd,bhsd->bhts", q.double(), k.double()) * scale
    s = s if bias is None else s + bias.double()
    mask = kept(keep, causal, q, k)
    s = s.masked_fill(~mask, fill)
    return torch.einsum("bhts,bhsd->bhtd", s.softmax(-1), v.double())


def pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    tau: Tensor | None,
    offset: Tensor | None,
    gain: Tensor | None = None,
    *,
    scale: float,
    h: str,
    causal: bool,
) -> Tensor:
    """``gain sum_s keep h(tau (scale q.k + bias) + offset) v`` (2409.04431, 2309.08586).

    ``[B, H, T, dv]`` in float64; the arguments are those of ``call.PointwiseCall``.
    """
    k, v = grouped(k, q.shape[1]), grouped(v, q.shape[1])
    s = torch.einsum("bhtd,bhsd->bhts", q.double(), k.double()) * scale
    s = s if bias is None else s + bias.double().masked_fill(bias == -math.inf, 0.0)
    s = s if tau is None else s * tau.double().view(1, -1, 1, 1)
    s = s if offset is None else s + offset.double()
    mask = kept(keep, causal, q, k)
    if bias is not None:
        mask = mask & (bias != -math.inf)
    p = H_FUNCTIONS[h](s) * mask  # after h: -inf before gelu would give NaN
    out = torch.einsum("bhts,bhsd->bhtd", p, v.double())
    return out if gain is None else out * gain.double()


def hydra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None = None,
    *,
    causal: bool,
    eps: float,
) -> Tensor:
    """Hydra attention (2209.07484) with the norm over all heads' features.

    ``[B, H, T, d]`` in float64; the arguments are those of ``call.HydraCall``.
    """
    k, v = grouped(k, q.shape[1]), grouped(v, q.shape[1])
    q, k, v = q.double(), k.double(), v.double()

    def unit(x: Tensor) -> Tensor:
        return x / (x * x).sum((1, 3), keepdim=True).clamp_min(eps).sqrt()

    kv = unit(k) * v
    if keep is not None:
        kv = kv * keep.double().transpose(-1, -2)
    total = kv.cumsum(2) if causal else kv.sum(2, keepdim=True)
    return unit(q) * total if gain is None else unit(q) * total * gain.double()
