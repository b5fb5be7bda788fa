"""The attention forms as small modules, usable without any compiler.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
All take ``forward(q [B,H,T,d], k [B,G,S,d], v [B,G,S,dv], bias, keep)`` and return
``[B,H,T,dv]``, but SkipAt, which maps a block output ``[B,T,D]`` to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _below(q: Tensor, k: Tensor) -> Tensor:
    """Causal positions s <= t as bool ``[T, S]``."""
    t = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
    return torch.arange(k.shape[2], device=q.device) <= t
