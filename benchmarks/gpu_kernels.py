"""Correctness of every Triton kernel on a GPU, then interleaved times against SDPA.

`python benchmarks/gpu_kernels.py OUT`. Fails before timing anything if a kernel is wrong.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from attnpass import environment
from attnpass.kernels import reference, triton_launch
from attnpass.kernels.tile import default_tile
from attnpass.tuner.latency import floor, interleave, ratio

SHAPES = [(4, 16, n, d) for n in (512, 2048, 8192) for d in (64, 128)]


def draw(shape, dtype):
    return [torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3)]


def check() -> list[dict]:
    """Relative errors against float64 at small sizes, every h, causal and not."""
    rows = []
    for dtype, allowed in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        for h in reference.H_FUNCTIONS:
            for causal in (False, True):
                q, k, v = draw((2, 3, 130, 64), dtype)
                offset = torch.full((1, 1, 1, 1), -4.9, device="cuda")
                tile = default_tile("cuda", 64).as_list()
                given = (q, k, v, None, None, None, offset, None)
                got = triton_launch.pointwise(*given, 0.125, h, causal, tile)
                want = reference.pointwise(*given, scale=0.125, h=h, causal=causal)
                rows.append(compare(f"pointwise {h}", dtype, causal, got, want, allowed))
        for causal in (False, True):
            q, k, v = draw((2, 3, 130, 64), dtype)
            tile = default_tile("cuda", 64).as_list()
            got = triton_launch.hydra(q, k, v, None, None, causal, 1e-6, tile)
            want = reference.hydra(q, k, v, None, causal=causal, eps=1e-6)
            rows.append(compare("hydra", dtype, causal, got, want, allowed))
    return rows


def compare(name, dtype, causal, got, want, allowed) -> dict:
    error = float((got.double() - want).norm() / want.norm())
    if not error <= allowed:
        raise SystemExit(f"{name} {dtype} causal={causal}: relative error {error:.2g} > {allowed}")
    return {"kernel": name, "dtype": str(dtype), "causal": causal, "error": error}


def measure(shape, causal) -> dict:
    q, k, v = draw(shape, torch.bfloat16)
    n, d = shape[2:]
    tile = default_tile("cuda", d).as_list()
    offset = torch.full((1, 1, 1, 1), -float(torch.tensor(float(n)).log()), device="cuda")

    def sdpa():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def pointwise(h):
        given = (q, k, v, None, None, None, offset, None)
        return lambda: triton_launch.pointwise(*given, d**-0.5, h, causal, tile)

    def hydra():
        return triton_launch.hydra(q, k, v, None, None, causal, 1e-6, tile)

    runs = [sdpa, sdpa, pointwise("sigmoid"), pointwise("relu"), hydra]
    times = interleave(runs, rounds=50, warmup=10, synchronise=torch.cuda.synchronize)
    base = times[0]
    return {
        "shape": shape,
        "causal": causal,
        "sdpa_ms": sorted(base)[25],
        "floor": floor(base, times[1]),
        "over_sdpa": {
            name: ratio(base, series).as_dict()
            for name, series in zip(("sigmoid", "relu", "hydra"), times[2:], strict=True)
        },
    }


def main() -> None:
    row = {
        "command": "benchmarks/gpu.sh",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device("cuda"),
        "versions": environment.versions(),
        "correct": check(),
        "forward": [measure(s, c) for s in SHAPES for c in (False, True)],
    }
    Path(sys.argv[1]).write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
