"""Plain ATen left to inductor, or the fused kernel: `python benchmarks/cpu_selection.py [OUT]`.

What the thresholds in `kernels/select.py` rest on. Each row is one function between a fused
projection and the next layer's reshape, compiled by inductor with static shapes; ratios are
medians of interleaved pairs over the compiled SDPA (hydra: over plain ATen). `without a kernel`
is the plain torch path that runs where there is no compiler or no AVX-512.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cpu_attention import Runs, say, timed, using, write
from torch import Tensor

from attnpass import forms
from attnpass.kernels import ops
from attnpass.kernels.select import choose, choose_hydra, choose_softmax, default_tile
from attnpass.kernels.tile import Tile
from attnpass.tuner.tiles.attention_call import ALLOWED

D = 64
POINTWISE = {16: (32, 4), 32: (32, 4), 64: (16, 4), 128: (8, 4), 197: (8, 6), 512: (2, 6)}
PLAIN = {128: (8, 4), 512: (2, 6), 1024: (1, 6), 2048: (1, 4)}
HYDRA = {32: (8, 4), 64: (8, 4), 128: (8, 4), 197: (8, 6), 1024: (1, 12), 4096: (1, 6)}
"""Tokens to batch and heads."""

SOFTMAX = [
    *((n, n, b) for n, b in ((16, 32), (32, 32), (48, 16), (64, 16), (128, 8), (512, 2))),
    *((1, n, b) for n, b in ((32, 8), (64, 8), (256, 1), (2048, 1))),
    *((16, 1024, 1), (24, 1024, 1), (32, 1024, 1), (48, 1024, 1)),
]
"""Queries, keys and batch; four heads."""


def compiled(attend: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """``attend`` between a fused projection ``[B, n, 3, H, d]`` and a linear layer's input."""

    def run(x: Tensor) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in x.unbind(2))
        return attend(q, k, v).transpose(1, 2).flatten(2) * 1.5

    return torch.compile(run, dynamic=False)


def measure(
    n: int, sizes: tuple[int, int], dtype: str, attends: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    """One row: every function of ``attends`` compiled and timed against the first."""
    torch._dynamo.reset()
    b, count = sizes
    x = torch.randn(b, n, 3, count, D).to(getattr(torch, dtype))
    runs: Runs = {}
    for name, attend in attends.items():
        runs[name] = functools.partial(compiled(attend), x)
    row = {"n": n, "batch": b, "heads": count, "d": D, "dtype": dtype, **more}
    row |= timed(runs, 1.5)
    say(row, *list(runs)[1:])
    return row


def pointwise(n: int, sizes: tuple[int, int], dtype: str, **more: Any) -> dict[str, Any]:
    tiles = {"aten": Tile("aten"), "fused": default_tile("cpu", D)}
    attends: dict[str, Any] = {"sdpa": F.scaled_dot_product_attention}
    for name, tile in tiles.items():
        if name == "fused" or dtype == "float32":  # plain ATen rounds the logits
            attends[name] = forms.Pointwise(
                sizes[1], sizes[1], D, h="sigmoid", tile=tile, centred=False
            )
    like = torch.empty(sizes[0], sizes[1], n, D, dtype=getattr(torch, dtype))
    chosen = choose(like, like).implementation
    return measure(n, sizes, dtype, attends, {"form": "sigmoid", "chosen": chosen, **more})


def hydra(n: int, sizes: tuple[int, int], dtype: str, causal: bool) -> dict[str, Any]:
    tiles = {"aten": Tile("aten"), "fused": default_tile("cpu", D)}
    attends = {
        name: forms.Hydra(sizes[1], D, tile=tile, causal=causal) for name, tile in tiles.items()
    }
    like = torch.empty(sizes[0], sizes[1], n, D, dtype=getattr(torch, dtype))
    chosen = choose_hydra(like, causal, None).implementation
    more = {"form": "hydra", "causal": causal, "chosen": chosen}
    return measure(n, sizes, dtype, attends, more)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as many models spell it; inductor does not recognise it with this scale."""
    return ((q @ k.transpose(-1, -2)) * 0.1234).softmax(-1) @ v


def softmax(t: int, s: int, batch: int, dtype: str) -> dict[str, Any]:
    """Exact softmax of queries and keys: the kernel, torch's operator, and spelled by hand."""
    torch._dynamo.reset()
    tiles = [default_tile("cpu", D, x).as_list() for x in ("forward", "backward")]
    shape = (batch, 4, D)
    x = torch.randn(batch, t, *shape[1:]).to(getattr(torch, dtype))
    y = torch.randn(batch, s, 2, *shape[1:]).to(x.dtype)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = ops.softmax(q, k, v, None, None, 0.1234, False, *tiles)[0]
        return out

    attends = {
        "sdpa": functools.partial(F.scaled_dot_product_attention, scale=0.1234),
        "by hand": by_hand,
        "fused": kernel,
    }

    def run(attend: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        k, v = (z.transpose(1, 2) for z in y.unbind(2))
        return attend(x.transpose(1, 2), k, v).transpose(1, 2).flatten(2) * 1.5

    runs: Runs = {}
    for name, attend in attends.items():
        runs[name] = functools.partial(
            torch.compile(functools.partial(run, attend), dynamic=False), x, y
        )
    want = by_hand(*(z.double().transpose(1, 2) for z in (x, *y.unbind(2))))
    got = runs["fused"]().unflatten(-1, (4, D)).transpose(1, 2) / 1.5
    error = float((got.double() - want).norm() / want.norm())
    assert error <= ALLOWED[dtype], error
    row = {"form": "softmax", "queries": t, "keys": s, "batch": batch, "heads": 4, "d": D}
    row |= {"dtype": dtype, "error": error, **timed(runs, 1.0)}
    row["chosen"] = choose_softmax(x, t, s, 0.1234).implementation
    say(row, "by hand", "fused")
    return row


def main() -> None:
    torch.manual_seed(0)
    rows = []
    with torch.no_grad():
        for dtype in ("float32", "bfloat16"):
            rows += [softmax(*sizes, dtype) for sizes in SOFTMAX]
            rows += [pointwise(n, sizes, dtype) for n, sizes in POINTWISE.items()]
            rows += [hydra(n, s, dtype, c) for n, s in HYDRA.items() for c in (False, True)]
        with using("switched off"):
            rows += [pointwise(n, s, "float32", without="a kernel") for n, s in PLAIN.items()]
    write("cpu_selection", rows)


if __name__ == "__main__":
    main()
