"""How near the default tile is to the best one: `python benchmarks/cpu_tiles.py [OUT]`.

For every shape all tiles of a grid run interleaved with the default. `best_over_default` is the
default's time over that of the tile with the least median, measured again, in pairs, so that the
luckiest of many is not taken for the best; 1 where the default itself is the quickest. Other
instructions: `ATTNPASS_INSTRUCTIONS=avx2 python benchmarks/cpu_tiles.py OUT`.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch
from cpu_attention import heads, write

from attnpass.kernels import ops
from attnpass.kernels.select import default_tile
from attnpass.tuner.measure.latency import interleave, ratio

ROWS, COLUMNS = (32, 64, 128, 256), (64, 128, 256, 512)

SHAPES = {64: (16, 6), 197: (8, 6), 512: (2, 6), 1024: (1, 12), 2048: (1, 6), 4096: (1, 4)}
"""Tokens to batch and heads."""

QUERIES, KEYS = (1, 16), (2048, 8192)
"""Few queries against many keys, as in decoding."""


def shapes() -> list[dict[str, Any]]:
    """Tokens, head dims, dtypes and directions; softmax, and sigmoid where nothing is causal."""
    usual = [
        {"n": n, "d": d, "dtype": dtype, "h": "softmax", "causal": causal}
        for n, d, dtype, causal in itertools.product(
            SHAPES, (64, 128), ("float32", "bfloat16"), (False, True)
        )
    ]
    others = [
        {"n": n, "d": 64, "dtype": dtype, "h": "sigmoid", "causal": False}
        for n, dtype in itertools.product(SHAPES, ("float32", "bfloat16"))
    ]
    few = [
        {"n": n, "d": 64, "dtype": dtype, "h": "softmax", "causal": False, "queries": queries}
        for n, queries, dtype in itertools.product(KEYS, QUERIES, ("float32", "bfloat16"))
    ]
    return usual + others + few


def measure(
    n: int, d: int, dtype: str, h: str, causal: bool, queries: int | None = None
) -> dict[str, Any]:
    """One shape; as many queries as keys if not said."""
    b, count = SHAPES[n] if queries is None else (1, 12)
    q, k, v = heads(b, n, count, d, dtype)
    q = q[:, :, :queries]
    default = default_tile("cpu", d, causal=causal * n)
    grid = [(m, c) for m, c in itertools.product(ROWS, COLUMNS) if m <= max(64, n)]

    def run(m: int, c: int) -> Any:
        tile = [m, c, 4, 2, default.heads, 0, 0]
        if h == "softmax":
            return ops.softmax(q, k, v, None, None, d**-0.5, causal, tile, tile)
        return ops.pointwise(q, k, v, None, None, None, None, None, d**-0.5, h, causal, tile, tile)

    calls = [lambda m=m, c=c: run(m, c) for m, c in grid]
    once = sum(min(t) for t in interleave(calls, rounds=2, warmup=1))
    times = interleave(calls, rounds=int(min(25, max(5, 1500 / once))), warmup=0)
    medians = [statistics.median(t) for t in times]
    best = grid[medians.index(min(medians))]
    again = interleave(
        [lambda: run(default.block_m, default.block_n), lambda: run(*best)],
        rounds=int(min(61, max(15, 1500 / min(medians) / 2))),
        warmup=1,
    )
    found = ratio(*again)
    row = {"n": n, "batch": b, "heads": count, "d": d, "dtype": dtype, "h": h, "causal": causal}
    row |= {} if queries is None else {"queries": queries}
    row |= {"best": best, "default": (default.block_m, default.block_n)}
    row |= {"best_over_default": found.as_dict()}
    print({k: row[k] for k in ("n", "d", "dtype", "h", "causal", "best")}, found, flush=True)
    return row


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [measure(**shape) for shape in shapes()]
    write("cpu_tiles", rows)
    worst = max(r["best_over_default"]["median"] for r in rows)
    print(f"{len(rows)} shapes; the default is within {worst:.2f} of the best")


if __name__ == "__main__":
    main()
