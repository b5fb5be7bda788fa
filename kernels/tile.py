"""Tile: the launch parameters of a kernel, its defaults and the legal candidates per device."""

from __future__ import annotations

from dataclasses import asdict, dataclass

IMPLEMENTATIONS = ("fused", "aten")


@dataclass(frozen=True)
class Tile:
    """How one attention kernel is launched.

    Attributes:
        implementation: ``fused`` (the registered operator) or ``aten`` (plain operations that
            the inner compiler fuses).
        block_m: query rows per block.
        block_n: key columns per block.
        heads: heads per task (CPU only): how many share one thread's turn.
        warps: warps per program (GPU only).
        stages: software pipeline stages (GPU only).
    """

    implementation: str = "fused"
    block_m: int = 128
    block_n: int = 512
    warps: int = 4
    stages: int = 2
    heads: int = 1

    def __post_init__(self) -> None:
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"expected implementation in {IMPLEMENTATIONS}, got {self.implementation!r}"
            )
        for name in ("block_m", "block_n", "warps", "stages", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")

    def as_list(self) -> list[int]:
        """``[block_m, block_n, warps, stages, heads]``: how an operator takes the tile."""
        return [self.block_m, self.block_n, self.warps, self.stages, self.heads]

    def as_dict(self) -> dict[str, int | str]:
        """The tile as plain JSON types."""
        return asdict(self)


def default_tile(device: str, head_dim: int) -> Tile:
    """The tile used where nothing was measured; on a GPU FlashAttention-2's own choices."""
    if device == "cpu":
        return Tile(block_m=128, block_n=512)
    wide = 128 if head_dim <= 64 else 64
    return Tile(block_m=128 if head_dim <= 128 else 64, block_n=wide, warps=4, stages=2)


def candidates(device: str) -> tuple[Tile, ...]:
    """The tiles that a search may try on ``device`` (``cpu`` or ``cuda``)."""
    if device == "cpu":
        blocks = [(m, n) for m in (32, 64, 128, 256) for n in (64, 128, 256, 512, 1024)]
        return (Tile("aten"), *(Tile(block_m=m, block_n=n) for m, n in blocks))
    blocks = [(m, n) for m in (64, 128) for n in (32, 64, 128)]
    return tuple(
        Tile(block_m=m, block_n=n, warps=w, stages=s)
        for m, n in blocks
        for w in (4, 8)
        for s in (2, 3, 4)
    )
