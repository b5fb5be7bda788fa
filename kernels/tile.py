"""The launch parameters of a kernel, and the classes of calls for which tiles are measured.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields

from torch import Tensor

from attnpass.errors import ArgumentError
from attnpass.torch_internals import hint

IMPLEMENTATIONS = ("fused", "aten")

LARGEST = 2**16
"""The largest size in a tile: the kernels may multiply two of them and a length in 64 bits."""


@dataclass(frozen=True)
class Tile:
    """How one attention kernel is launched.

    Attributes:
        implementation: ``fused`` (the registered operator) or ``aten`` (plain operations that
            the inner compiler fuses).
        block_m: query rows per block.
        block_n: key columns per block.
        warps: warps per program (GPU only).
        stages: software pipeline stages (GPU only).
        heads: heads that one thread takes in a row (CPU only).
        descriptors: 1 loads keys and values by the tensor memory accelerator (GPU from sm90 on).
        persistent: 1 starts as many programs as the GPU has multiprocessors (GPU only).

    Raises:
        ArgumentError: an unknown implementation, a size out of range, or a switch other than 0 and
            1.
    """

    implementation: str = "fused"
    block_m: int = 128
    block_n: int = 512
    warps: int = 4
    stages: int = 2
    heads: int = 1
    descriptors: int = 0
    persistent: int = 0

    def __post_init__(self) -> None:
        if self.implementation not in IMPLEMENTATIONS:
            raise ArgumentError(
                f"expected implementation in {IMPLEMENTATIONS}, got {self.implementation!r}"
            )
        for name in ("descriptors", "persistent"):
            if getattr(self, name) not in (0, 1):
                raise ArgumentError(f"expected {name} 0 or 1, got {getattr(self, name)}")
        for name in ("block_m", "block_n", "warps", "stages", "heads"):
            if getattr(self, name) not in range(1, LARGEST + 1):
                raise ArgumentError(f"expected {name} 1 to {LARGEST}, got {getattr(self, name)}")

    def as_list(self) -> list[int]:
        """All fields but the implementation, in order: how an operator takes the tile."""
        return list(astuple(self)[1:])

    @staticmethod
    def from_list(numbers: Sequence[int]) -> Tile:
        """The fused tile of ``as_list()``; fields that a shorter list lacks have their defaults.

        Raises:
            ArgumentError: as ``Tile`` does, or more numbers than a tile has.
        """
        return _fused(*numbers)

    def as_dict(self) -> dict[str, int | str]:
        """The tile as plain JSON types."""
        return asdict(self)


@functools.lru_cache(1024)
def _fused(*numbers: int) -> Tile:
    """The fused tile of these numbers; an operator asks for the same few at every call."""
    most = len(fields(Tile)) - 1
    if len(numbers) > most:
        raise ArgumentError(f"expected a tile of at most {most} numbers, got {len(numbers)}")
    return Tile("fused", *numbers)


@dataclass(frozen=True)
class ShapeClass:
    """Calls that share a measured tile: counts are rounded up to powers of two.

    Attributes:
        direction: ``forward`` or ``backward``.
        h: the pointwise function.
        heads: batch times heads, rounded up.
        queries: T, rounded up.
        keys: S, rounded up.
        head_dim: d.
        value_dim: head dim of the values.
        dtype: of the queries, for example ``float32``.
        causal: whether only the keys s <= t are kept.
        mask: ``none``, ``columns`` (the same for every query) or ``rows``.
    """

    direction: str
    h: str
    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: str
    causal: bool
    mask: str

    def __str__(self) -> str:
        mask = "causal" if self.causal else "full"
        mask += "" if self.mask == "none" else f"+{self.mask}"
        sizes = f"{self.heads}x{self.queries}x{self.keys}x{self.head_dim}"
        sizes += "" if self.head_dim == self.value_dim else f":{self.value_dim}"
        return f"{self.h} {self.direction} {sizes} {self.dtype} {mask}"

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        h: str,
        causal: bool,
        direction: str = "forward",
    ) -> ShapeClass | None:
        """The class of a call with ``q [B, H, T, d]``, ``k [B, G, S, d]``, ``v [B, G, S, dv]``.

        ``bias`` and ``keep`` broadcast to ``[B, H, T, S]``. None where a size has no known value.
        """
        sizes = [hint(n) for n in (q.shape[0] * q.shape[1], q.shape[2], k.shape[2])]
        if any(n is None for n in sizes):
            return None
        rows = [x for x in (bias, keep) if x is not None and x.dim() > 1]
        by_row = any(hint(x.shape[-2]) != 1 for x in rows)
        mask = "rows" if by_row else "none" if bias is None and keep is None else "columns"
        heads, queries, keys = (1 << max(0, (n or 1) - 1).bit_length() for n in sizes)
        dtype = str(q.dtype).removeprefix("torch.")
        dims = (int(q.shape[3]), int(v.shape[3]))
        return cls(direction, h, heads, queries, keys, *dims, dtype, causal, mask)


Tiles = Mapping[str, Tile]
"""Measured tiles by ``str(ShapeClass)``."""


def measured(
    tiles: Tiles | None,
    direction: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    *,
    h: str,
    causal: bool,
) -> Tile | None:
    """The tile that was measured for the class of a call; None where none was."""
    if not tiles:
        return None
    return tiles.get(str(ShapeClass.of(q, k, v, bias, keep, h, causal, direction)))
