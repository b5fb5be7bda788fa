"""Which tile runs: plain ATen, left to the compiler, or the fused operator and its block sizes.

A tile that was given or measured wins; the thresholds for all other calls come from
``benchmarks/cpu_selection.py``. Shapes: B batch, H query heads, G key/value heads, T queries,
S keys, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnpass.kernels.cpu import launch
from attnpass.kernels.gpu import limits
from attnpass.kernels.tile import IMPLEMENTATIONS, Tile
from attnpass.torch_internals import hint, statically_known_true

ATEN_SCORES = 1024 * 1024
"""Up to this many scores T * S per head the compiler's own fusion beats the tiled plain torch."""

ATEN_SMALL = 32 * 32
"""The same threshold against the C++ kernel, where the fixed cost of a call decides."""

HYDRA_TOKENS = 128
"""From this many tokens on the C++ kernel of causal hydra beats the cumsum of a compiler."""


SOFTMAX_TOKENS = 64
"""From this many queries and keys on the C++ kernel beats torch's fused operator.

So it does in every dtype, batch and head dim measured; in batches of 8 already from 32 tokens on.
"""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernel(name: str) -> bool:
    """Whether the C++ kernel ``name`` runs here; the first question compiles the kernel."""
    return launch.refusal(name) is None


def choose(q: Tensor, k: Tensor, *tiles: Tile | None) -> Tile:
    """The tile that runs for ``q [B, H, T, d]`` and ``k [B, G, S, d]``.

    The first of ``tiles`` that is sound wins. Plain ATen rounds the logits to the input dtype, so
    that it is sound for float32 and float64 alone.
    """
    wide = q.dtype in (torch.float32, torch.float64)
    for tile in tiles:
        if tile is not None and (tile.implementation == "fused" or wide):
            return tile
    if q.device.type == "cuda" and q.dtype == torch.float64:
        return Tile("aten")  # the kernels sum in float32
    fast = q.device.type == "cpu" and q.dtype == torch.float32 and has_kernel("pointwise")
    few = ATEN_SMALL if fast else ATEN_SCORES
    if wide and statically_known_true(q.shape[2] * k.shape[2] <= few):
        return Tile("aten")
    return default_tile(q.device.type, q.shape[3], dtype=q.dtype)


def choose_softmax(
    q: Tensor, queries: int | torch.SymInt, keys: int | torch.SymInt, scale: float
) -> Tile:
    """The tile of exact softmax for queries like ``q [..., d]``, so many of them, and keys.

    Plain ATen stands for torch's own fused operator: it serves a GPU, float64, short lengths, and
    a scale that is not above 0. Of a symbolic length the size decides that it had when the graph
    was compiled.
    """
    narrow = q.dtype in (torch.float32, torch.bfloat16, torch.float16)
    long = all((hint(n) or 0) >= SOFTMAX_TOKENS for n in (queries, keys))
    if q.device.type != "cpu" or not narrow or not long or scale <= 0:
        return Tile("aten")
    return default_tile("cpu", q.shape[-1]) if has_kernel("pointwise") else Tile("aten")


def choose_hydra(q: Tensor, causal: bool, tile: Tile | None) -> Tile:
    """The tile of hydra for ``q [B, H, T, d]``.

    A given ``tile`` wins. A CPU runs plain ATen, which the compiler fuses with the operations
    around it, but for causal sums, where the C++ kernel reads less memory. A GPU runs the kernel
    from ``HYDRA_TOKENS`` on: it reads every input once, plain ATen reads k and q twice (counted,
    not measured).
    """
    if tile is not None:
        return tile
    narrow = q.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not narrow or not statically_known_true(q.shape[2] >= HYDRA_TOKENS):
        return Tile("aten")
    if q.device.type == "cuda" and limits.capability() >= limits.MIN_CAPABILITY:
        return Tile()
    fused = causal and q.device.type == "cpu" and has_kernel("hydra")
    return default_tile("cpu", q.shape[3]) if fused else Tile("aten")


def default_tile(
    device: str, head_dim: int, direction: str = "forward", dtype: torch.dtype = torch.float32
) -> Tile:
    """The fused tile where nothing was measured, for ``device`` ``cpu`` or ``cuda``."""
    if device == "cpu":
        return Tile(block_m=128 if direction == "forward" else 256, block_n=256)
    return limits.default(head_dim, head_dim, dtype.itemsize, direction, limits.capability())


def space(device: str) -> dict[str, tuple[Any, ...]]:
    """The values of each parameter of a tile that a search tries on ``cpu`` or ``cuda``."""
    if device == "cpu":
        return {
            "implementation": IMPLEMENTATIONS,
            "block_m": (16, 32, 64, 128, 256, 512),
            "block_n": (32, 64, 128, 256, 512, 1024),
            "heads": (1, 2, 4),
        }
    return {
        "implementation": IMPLEMENTATIONS,
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (16, 32, 64, 128, 256),
        "warps": (4, 8),
        "stages": (1, 2, 3, 4),
        "descriptors": (0, 1),
        "persistent": (0, 1),
    }
