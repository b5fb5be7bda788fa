"""Hydra attention as a module: linear in the number of tokens.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnpass.errors import OptionError
from attnpass.kernels import torch_whole
from attnpass.kernels.call import HydraCall
from attnpass.kernels.select import choose_hydra
from attnpass.kernels.tile import Tile


class Hydra(nn.Module):
    """``gain q^ * sum_s (k^ * v)`` over all H d features (2209.07484), O(T H d).

    ``x^`` is a token's row of all features over its norm.

    Args:
        heads: H.
        head_dim: d.
        causal: whether the sum runs over s <= t alone, which needs T = S.
        eps: floor of the squared norms, so that a zero vector gives 0.
        trainable: whether the parameter ``gain [H d]`` exists; without it the gain is 1.
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
        """``[B, H, T, d]`` from ``q [B, H, T, d]`` and ``k``, ``v`` ``[B, G, S, d]``.

        ``keep`` is bool ``[B|1, 1, 1, S]``; ``bias`` is there because all forms share a signature.

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
            return torch_whole.hydra(HydraCall(q, k, v, keep, gain, self.causal, self.eps, tile))
        # registers the operators, which takes time: when a module first needs them
        from attnpass.kernels import ops

        group = self.heads // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k, v))
        out: Tensor = ops.hydra(q, k, v, keep, gain, self.causal, self.eps, tile.as_list())
        return out
