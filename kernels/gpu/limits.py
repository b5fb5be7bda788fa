"""The resources of an NVIDIA GPU, estimates of the needs of a tile, and the default tiles.

Nothing is compiled here: the estimates follow the compiled kernels of sm80 and sm90
(``benchmarks/gpu_compile.py``), for shared memory to the kilobyte, for registers roughly.
Shapes: d head dim, dv value dim, both padded to powers of two; size: bytes of an entry.
"""

from __future__ import annotations

import torch

from attnpass.errors import ArgumentError
from attnpass.kernels.tile import LARGEST, Tile

MIN_CAPABILITY = 80
"""The least compute capability that the Triton kernels serve; older GPUs run plain torch."""

SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99}
"""KiB of shared memory that one program may have, per compute capability."""

TMA = (90, 100, 103, 110)
"""The compute capabilities with a tensor memory accelerator and asynchronous matrix units."""

REST = 2048
"""Bytes of shared memory that barriers and vectors take at most."""

REGISTERS = {2: 224, 4: 64}
"""Of a thread's 255 registers, how many sums and scores may take, by the size of an entry.

float32 is multiplied without matrix units, so that the factors also lie in registers.
"""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def capability() -> int:
    """The compute capability of the current device, 80 for sm80; 0 without an NVIDIA GPU."""
    if not torch.cuda.is_available() or torch.version.hip:
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def power(n: int) -> int:
    """The least power of two >= ``n`` that a Triton dot accepts (16)."""
    return max(16, 1 << (n - 1).bit_length())


def check_powers(tile: Tile, *names: str) -> None:
    """Refuse what Triton cannot compile, before it says so at length.

    Raises:
        ArgumentError: one of these sizes of the tile is no power of two, a block has fewer than 16
            rows or columns, or a program more than 32 warps.
    """
    for name in names:
        n, least, most = getattr(tile, name), *((1, 32) if name == "warps" else (16, LARGEST))
        if n & (n - 1) or not least <= n <= most:
            raise ArgumentError(
                f"expected {name} on a GPU as a power of two from {least} to {most}, got {n}"
            )


def shared_bytes(tile: Tile, d: int, dv: int, size: int, direction: str, sm: int) -> int:
    """Bytes of shared memory of the largest kernel of a direction.

    The blocks that a program owns lie there once, the blocks of its loop once per stage, barriers
    and vectors in ``REST`` bytes. The matrix units of sm90 read shared memory themselves; on other
    GPUs one stage lies in registers, and scores may pass through shared memory on their way to the
    second product.
    """
    d, dv = power(d), power(dv)
    owned = tile.block_m * (d if direction == "forward" else d + dv)
    asynchronous = sm in TMA and size == 2 and tile.block_m >= 64
    held = tile.stages if asynchronous else max(1, tile.stages - 1)
    scores = 0 if asynchronous else tile.block_m * tile.block_n
    return (owned + held * tile.block_n * (d + dv) + scores) * size + REST


def registers(tile: Tile, d: int, dv: int, direction: str) -> int:
    """Registers per thread for the sums and scores of the largest kernel of a direction."""
    d, dv = power(d), power(dv)
    scores = tile.block_m * tile.block_n
    sums = dv * tile.block_m if direction == "forward" else (d + dv) * tile.block_m + scores
    return (sums + scores) // (32 * tile.warps)


def refusal(tile: Tile, d: int, dv: int, size: int, direction: str, sm: int) -> str | None:
    """Why a tile cannot run on sm``sm``, or spills most of its registers; None if it may run."""
    limit = 1024 * SHARED.get(sm, min(SHARED.values()))
    needs = shared_bytes(tile, d, dv, size, direction, sm)
    if needs > limit:
        return f"{needs} bytes of shared memory, sm{sm} has {limit}"
    taken = registers(tile, d, dv, direction)
    if taken > REGISTERS[size]:
        return f"{taken} registers a thread for sums and scores, of {REGISTERS[size]}"
    if tile.descriptors and sm not in TMA:
        return f"sm{sm} has no tensor memory accelerator"
    return None


SIZES = ((128, 128, 8), (128, 64, 8), (64, 64, 8), (64, 32, 8), (32, 32, 8), (32, 32, 4))
"""Rows, columns and warps of the default tiles, from large to small."""

FEW = ((16, 128, 4), (16, 64, 4), (16, 32, 4))
"""The same for a forward with at most ``FEW_QUERIES`` queries, as in decoding."""

FEW_QUERIES = 16


def default(d: int, dv: int, size: int, direction: str, sm: int, queries: int = 0) -> Tile:
    """The tile where nothing was measured: the largest of ``SIZES`` that compiles without spills.

    It has descriptors, which save a quarter of the registers, where the GPU can load by them.
    ``queries``: how many there are, 0 for many.
    """
    tma, forward = int(sm in TMA and size == 2), direction == "forward"
    rooms = {(2, True): (160, 144), (2, False): (96, 128), (4, False): (24, 48)}
    room = rooms[size, bool(tma)][0 if forward else 1]
    few = forward and 0 < queries <= FEW_QUERIES
    for m, n, warps in FEW if few else SIZES:
        tile = Tile(block_m=m, block_n=n, warps=warps, stages=2 + few, descriptors=tma)
        why = refusal(tile, d, dv, size, direction, sm)
        if why is None and registers(tile, d, dv, direction) <= room:
            return tile
    return Tile(block_m=16, block_n=16, warps=8, stages=1, descriptors=tma)
