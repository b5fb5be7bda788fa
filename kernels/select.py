"""Which implementation serves a call: plain ATen left to the compiler, or the fused operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from attnpass.kernels.tile import Tile, default_tile

ATEN_SCORES = 1024 * 1024
"""Up to so many scores per head the compiler's own fusion beats the tiled CPU path."""


def choose(q: Tensor, k: Tensor, tile: Tile | None) -> Tile:
    """The tile that runs for ``q [B, H, T, d]`` and ``k [B, G, S, d]``.

    A given tile wins where it is sound. Plain ATen rounds the logits to the input dtype, so it
    serves float32 and float64 alone.
    """
    wide = q.dtype in (torch.float32, torch.float64)
    if tile is not None and (tile.implementation == "fused" or wide):
        return tile
    if wide and statically_known_true(q.shape[2] * k.shape[2] <= ATEN_SCORES):
        return Tile("aten")
    return default_tile(q.device.type, q.shape[3])
