"""Which tile runs: plain ATen, left to the compiler, or the fused operator and its block sizes.

A tile that was given or measured wins; the thresholds for all other calls come from
``benchmarks/cpu_selection.py``. Shapes: B batch, H query heads, G key/value heads, T queries,
S keys, d head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attnpass.kernels.cpu import build, launch
from attnpass.kernels.gpu import limits
from attnpass.kernels.tile import IMPLEMENTATIONS, Tile
from attnpass.torch_internals import hint, statically_known_true

ATEN_SCORES = 1024 * 1024
"""Up to this many scores T * S per head the compiler's own fusion beats the tiled plain torch."""

ATEN_SMALL, ATEN_FEW = 32 * 32, 2**15
"""The same threshold against the C++ kernel, where the fixed cost of a call decides: so many
scores per head, and fewer than so many B * H * T * S in all."""

HYDRA_TOKENS = 128
"""From this many tokens on the C++ kernel of causal hydra beats the cumsum of a compiler."""


SOFTMAX_SCORES = {torch.float32: 2**16, torch.bfloat16: 2**14, torch.float16: 2**14}
"""From this many scores B * H * T * S on the C++ kernel of exact softmax beats torch's own."""

TRAINED_SCORES = {torch.float32: 2**20, torch.bfloat16: 2**15, torch.float16: 2**15}
"""So it does with its backward."""

SOFTMAX_TOKENS = 16
"""Fewer queries and keys than this were not measured, but few queries against many keys."""

AVX2_HEAD_DIM = 64
"""On AVX2, above this head dim, torch's products of float32 are as quick as all of the kernel."""

FEW_QUERIES, FEW_KEYS, FEW_SCORES = 16, 64, 2**12
"""Up to this many queries against this many keys (decoding) it wins from fewer scores on."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernel(name: str) -> bool:
    """Whether the C++ kernel ``name`` runs here; the first question compiles the kernel."""
    return launch.refusal(name) is None


def choose(q: Tensor, k: Tensor, *tiles: Tile | None, causal: bool = False) -> Tile:
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
    every = math.prod([hint(n) or 0 for n in (*q.shape[:3], k.shape[2])])
    small = statically_known_true(q.shape[2] * k.shape[2] <= few)
    if wide and small and (not fast or every < ATEN_FEW):
        return Tile("aten")
    queries = hint(q.shape[2]) or 0
    d, hidden = q.shape[3], causal * queries
    return default_tile(q.device.type, d, dtype=q.dtype, causal=hidden, queries=queries)


def choose_softmax(
    q: Tensor,
    queries: int | torch.SymInt,
    keys: int | torch.SymInt,
    scale: float,
    *,
    causal: bool = False,
    trained: bool = False,
) -> Tile:
    """The tile of exact softmax for ``q [..., d]``, so many queries in each head, and keys.

    Plain ATen stands for torch's own fused operator: it serves a GPU, float64, few scores, a scale
    that is not above 0, and processors on which nothing was measured. ``trained`` calls have a
    backward. Of a symbolic size the value decides that it had when the graph was compiled.
    """
    least = (TRAINED_SCORES if trained else SOFTMAX_SCORES).get(q.dtype)
    if q.device.type != "cpu" or least is None or scale <= 0:
        return Tile("aten")
    t, s, *rows = (hint(n) or 0 for n in (queries, keys, *q.shape[:-1]))
    if t <= FEW_QUERIES and s >= FEW_KEYS and not trained:
        least = FEW_SCORES
    elif min(t, s) < SOFTMAX_TOKENS:
        return Tile("aten")
    wide = q.dtype == torch.float32 and q.shape[-1] > AVX2_HEAD_DIM and t > FEW_QUERIES
    if math.prod(rows) * s < least or not wins_softmax(wide):
        return Tile("aten")
    return default_tile("cpu", q.shape[-1], causal=causal * t)


def can_run_softmax(q: Tensor, scale: float) -> bool:
    """Whether the C++ kernel of exact softmax takes ``q``, whatever is quicker."""
    known = q.device.type == "cpu" and q.dtype in SOFTMAX_SCORES
    return known and scale > 0 and has_kernel("pointwise")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def wins_softmax(wide: bool) -> bool:
    """Whether the C++ kernel of exact softmax runs here, and won on such a processor.

    ``wide``: for float32 and a head dim above ``AVX2_HEAD_DIM``.
    """
    if launch.refusal("pointwise") is not None:
        return False
    return build.instruction_set() not in ("neon", *(["avx2"] if wide else []))


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
    device: str,
    head_dim: int,
    direction: str = "forward",
    dtype: torch.dtype = torch.float32,
    *,
    causal: int = 0,
    queries: int = 0,
) -> Tile:
    """The fused tile where nothing was measured, for ``device`` ``cpu`` or ``cuda``.

    ``causal`` is the number of queries of a causal call, 0 of any other: fewer rows in a block
    leave out more of what is hidden (``benchmarks/cpu_tiles.py``). ``queries`` is their number in
    any call, 0 where it is not known; a GPU takes few rows where there are few.
    """
    if device == "cpu":
        if direction != "forward":
            return Tile(block_m=128 if head_dim <= 64 else 256, block_n=256)
        return Tile(block_m=128 if not causal else 64 if causal > 512 else 32, block_n=256)
    sm = limits.capability()
    return limits.default(head_dim, head_dim, dtype.itemsize, direction, sm, queries)


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
