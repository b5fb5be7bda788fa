"""The attention forms as small modules, usable without any compiler.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
All take ``forward(q [B,H,T,d], k [B,G,S,d], v [B,G,S,dv], bias, keep)`` and return
``[B,H,T,dv]``, but SkipAt, which maps a block output ``[B,T,D]`` to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnpass.errors import OptionError
from attnpass.kernels import torch_whole as aten
from attnpass.kernels.select import choose_hydra
from attnpass.kernels.tile import Tile


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
