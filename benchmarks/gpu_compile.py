"""Every Triton kernel compiled ahead, without a GPU: `python benchmarks/gpu_compile.py [OUT]`.

What the compiler makes of the kernels for a chip: registers, spills, shared memory, which matrix
and copy instructions the PTX holds. Nothing runs, so that no time is measured. Launches go through
the product's own launch code with a driver that only names its target.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from attnpass import environment, fingerprint
from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.gpu import (
    hydra_triton_launch,
    pointwise_backward_triton_launch,
    pointwise_triton_launch,
)
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.tile import Tile

PTX = {
    "wgmma": r"wgmma\.mma",
    "mma": r"\bmma\.sync",
    "tma": r"cp\.async\.bulk",
    "async copies": r"cp\.async\.c",
}


class Offline:
    """A driver of a chip that is not there: kernels compile for it and never run."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def offline(capability: int) -> Iterator[list[Any]]:
    """Inside, launches compile for sm``capability`` and are collected instead of run."""
    found: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> Any:
        found.append(run(self, *args, grid=grid, warmup=True, **more))
        return found[-1]

    triton.runtime.driver.set_active(Offline(capability))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run


def resources(kernel: Any) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory of a compiled kernel, and what its PTX holds."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    told = told[told.index(f"Function {kernel.metadata.name}:") :]
    usage = {k: int(re.search(rf"{k}:(\d+)", told)[1]) for k in ("REG", "STACK", "LOCAL")}
    ptx = kernel.asm["ptx"]
    return {
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "registers": usage["REG"],
        "spilled": usage["STACK"] + usage["LOCAL"],
        "shared": kernel.metadata.shared,
        **{name: len(re.findall(pattern, ptx)) for name, pattern in PTX.items()},
    }


def heads(n: int, d: int, dtype: torch.dtype, h: int = 2) -> list[Tensor]:
    """q, k, v and a gradient as a projection leaves them."""
    return [torch.empty(1, n, h, d, dtype=dtype).transpose(1, 2) for _ in range(4)]


def pointwise(sm: int, d: int, dtype: torch.dtype, h: str, **more: Any) -> list[dict[str, Any]]:
    """Resources of the forward and of the two kernels of the backward; estimates beside them."""
    q, k, v, grad = heads(1024, d, dtype)
    queries = more.get("queries", 0)
    if queries:  # decoding: four query heads for each of keys and values
        q = heads(queries, d, dtype, 8)[0]
    softmax, rows = h == SOFTMAX, []
    terms = [None if softmax else torch.empty(1, q.shape[1], 1, 1) for _ in range(2)]
    given = (q, k, v, None, None, None, *terms, d**-0.5, h, more.get("causal", False))
    lse = torch.empty(q.shape[:3])
    for direction in more.get("directions", ("forward", "backward")):
        tile = more.get("tile") or gpu.default(d, d, dtype.itemsize, direction, sm, queries)
        call = PointwiseCall(*given, tile)
        with offline(sm) as found:
            if direction == "forward":
                (
                    pointwise_triton_launch.softmax
                    if softmax
                    else pointwise_triton_launch.pointwise
                )(call)
            elif softmax:
                backward = pointwise_backward_triton_launch.softmax_backward
                backward(grad, call, lse, lse, False)
            else:
                pointwise_backward_triton_launch.pointwise_backward(grad, call, False)
        about = {
            "tile": tile.as_dict(),
            "estimated shared": gpu.shared_bytes(tile, d, d, dtype.itemsize, direction, sm),
            "estimated registers": gpu.registers(tile, d, d, direction),
        }
        rows += [{**resources(x), **about} for x in found]
    return rows


def hydra(sm: int, d: int, dtype: torch.dtype, count: int, causal: bool) -> list[dict[str, Any]]:
    """Resources of all four kernels."""
    q, k, v, grad = heads(1024, d, dtype, count)
    gain = torch.empty(1, count, 1, d)
    call = HydraCall(q, k, v, None, gain, causal, 1e-6, Tile())
    with offline(sm) as found:
        hydra_triton_launch.hydra(call)
        hydra_triton_launch.hydra_backward(grad, call)
    return [resources(x) for x in {x.hash: x for x in found}.values()]


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/gpu_compile.json")
    rows: list[dict[str, Any]] = []

    def add(found: list[dict[str, Any]], **about: Any) -> None:
        for row in found:
            rows.append({**about, **row})
            print({k: v for k, v in rows[-1].items() if k != "tile"}, flush=True)

    for descriptors in (0, 1):
        tile = Tile(block_m=128, block_n=128, warps=8, stages=2, descriptors=descriptors)
        more = {"tile": tile, "directions": ("forward",)}
        add(pointwise(90, 128, torch.bfloat16, "sigmoid", **more), compared="descriptors")
    for sm in (80, 90, 100):
        for dtype, dims in ((torch.bfloat16, (64, 128, 256)), (torch.float32, (64, 128))):
            for d in dims:
                for h in ("sigmoid", "sigmoid_tanh", "relu", SOFTMAX):
                    about = {"sm": sm, "dtype": str(dtype), "d": d, "h": h}
                    for causal in (False, True) if h in ("sigmoid", SOFTMAX) else (False,):
                        add(pointwise(sm, d, dtype, h, causal=causal), **about, causal=causal)
                    few = {"queries": 1, "directions": ("forward",)}
                    if h in ("sigmoid", SOFTMAX):
                        add(pointwise(sm, d, dtype, h, **few), **about, causal=False, queries=1)
            for count in (12, 32):
                for causal in (False, True):
                    about = {"sm": sm, "dtype": str(dtype), "features": 64 * count}
                    add(hydra(sm, 64, dtype, count, causal), **about, causal=causal)
    found = {
        "command": "python benchmarks/gpu_compile.py",
        "date": time.strftime("%Y-%m-%d"),
        "versions": environment.versions(),
        "kernels": fingerprint.kernels_digest(),
        "rows": rows,
    }
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
