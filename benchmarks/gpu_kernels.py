"""Triton kernels against every SDPA backend: `python benchmarks/gpu_kernels.py OUT PART`.

Parts: kernels (forward), backward, decode, hydra, phi, models, tiles. Ratios are medians of
interleaved pairs in one run, timed by the GPU's own events with cold caches, after a check
against float64; an A/A pair gives what cannot be told apart. The ceilings, copy bandwidth and a
large product, are of the same run. `ATTNPASS_SECONDS` ends a part after the row in which so many
have passed, and the result says so. `--tiny` on any device: the script itself, at sizes that show
nothing about speed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnpass import environment, fingerprint, forms
from attnpass.kernels import ops, reference
from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.gpu import hydra_triton_launch, pointwise_triton_launch
from attnpass.kernels.select import default_tile
from attnpass.kernels.tile import Tile
from attnpass.tuner.measure.latency import events, floor, interleave, ratio
from attnpass.tuner.tiles.attention_call import ALLOWED, Shape

TINY = "--tiny" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16
WIDTH, TOKENS = (64, 64) if TINY else (2048, 16384)
"""Heads times head dim, and batch times tokens: as FlashAttention's benchmarks have them."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Runs = dict[str, Callable[[], Any]]


def timed(runs: Runs, rounds: int = 30) -> dict[str, Any]:
    """Median milliseconds of each run that works, and its speed-up over the first, run twice."""
    fails: dict[str, str] = {}
    for name in list(runs):
        try:
            runs[name]()
        except Exception as error:
            fails[name] = (str(error) or repr(error)).strip().splitlines()[0][:160]
            del runs[name]
    names = list(runs)
    stopwatch = events() if DEVICE == "cuda" else None
    series = [runs[names[0]], *runs.values()]
    again, *times = interleave(series, rounds=3 if TINY else rounds, stopwatch=stopwatch)
    out: dict[str, Any] = {"floor": floor(times[0], again), "fails": fails}
    for name, row in zip(names, times, strict=True):
        out[name] = {"ms": statistics.median(row), **ratio(times[0], row).as_dict()}
    return out


def heads(b: int, n: int, h: int, d: int, grad: bool = False) -> list[Tensor]:
    """q, k, v as a projection leaves them."""
    x = (torch.randn(b, n, h, d, device=DEVICE, dtype=DTYPE) for _ in range(3))
    return [y.transpose(1, 2).requires_grad_(grad) for y in x]


def sdpa(backend: SDPBackend, *args: Any, **more: Any) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*args, **more)


def terms(q: Tensor, n: int, h: str) -> tuple[Tensor, Tensor]:
    """Offset and gain per head of a form at its start, for n keys."""
    values = (0.0, 1 / n) if h == "relu" else (-math.log(n), 1.0)
    offset, gain = (q.new_full((1, q.shape[1], 1, 1), x, dtype=torch.float32) for x in values)
    return offset, gain


def tiles(d: int, queries: int = 0) -> list[Tile]:
    """The default tiles of both directions; small ones where there is no GPU."""
    if DEVICE == "cpu":
        return [Tile(block_m=16, block_n=16)] * 2
    return [default_tile(DEVICE, d, x, DTYPE, queries=queries) for x in ("forward", "backward")]


def ours(q: Tensor, k: Tensor, v: Tensor, h: str, causal: bool) -> Callable[[], Tensor]:
    """The kernel with the terms that a form has."""
    scale, tile = q.shape[3] ** -0.5, tiles(q.shape[3], q.shape[2])[0]
    if h == SOFTMAX:
        call = PointwiseCall(q, k, v, *(None,) * 5, scale, h, causal, tile)
        return lambda: pointwise_triton_launch.softmax(call).out
    given = (q, k, v, None, None, None, *terms(q, k.shape[2], h), scale, h, causal)
    return functools.partial(pointwise_triton_launch.pointwise, PointwiseCall(*given, tile))


def trained(q: Tensor, k: Tensor, v: Tensor, h: str, causal: bool) -> Callable[[], Tensor]:
    """The same as the operator with its backward."""
    scale, both = q.shape[3] ** -0.5, [t.as_list() for t in tiles(q.shape[3])]
    if h == SOFTMAX:
        return lambda: ops.softmax(q, k, v, None, None, scale, causal, *both)[0]
    given = (q, k, v, None, None, None, *terms(q, k.shape[2], h), scale, h, causal)
    return functools.partial(ops.pointwise, *given, *both)


def exact(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, h: str, causal: bool) -> Tensor:
    """The same in float64."""
    scale, n = q.shape[3] ** -0.5, k.shape[2]
    if h == SOFTMAX:
        given = (q, k, v, None, keep)
        return reference.softmax(*given, scale=scale, causal=causal, fill=-math.inf)
    given = (q, k, v, None, keep, None, *terms(q, n, h))
    return reference.pointwise(*given, scale=scale, h=h, causal=causal)


def check(q: Tensor, k: Tensor, v: Tensor, h: str, causal: bool) -> float:
    """Relative error of some rows of the first heads against float64.

    Raises:
        SystemExit: the kernel is wrong.
    """
    with torch.no_grad():
        got = ours(q, k, v, h, causal)()[:1, :2]
    q, k, v = q[:1, :2], k[:1, :2], v[:1, :2]
    n = k.shape[2]
    rows = torch.linspace(0, n - 1, 64, device=DEVICE).round().long().unique()
    at = torch.arange(n, device=DEVICE)
    keep = at <= rows[:, None] if causal else at[None] >= 0
    same = h.removesuffix("_tanh")
    want = exact(q[:, :, rows], k, v, keep, same, False)
    error = float((got[:, :, rows].double() - want).norm() / want.norm())
    # the hardware's tanh is coarse by design: its error is a result
    if h == same and not error <= ALLOWED["bfloat16"]:
        raise SystemExit(f"{h} {tuple(q.shape)} causal={causal}: relative error {error:.2g}")
    return error


def cells() -> list[tuple[int, int, int, int, bool]]:
    """Batch, tokens, heads, head dim, causal."""
    # what says most comes first: a part may end early
    sizes = (32, 64) if TINY else (4096, 1024, 16384, 512, 8192, 2048, 32768)
    return [
        (max(1, TOKENS // n), n, WIDTH // d, d, causal)
        for n in sizes
        for d in ((16,) if TINY else (64, 128))
        for causal in (False, True)
    ]


def flops(cell: tuple[int, int, int, int, bool], products: int) -> float:
    b, n, h, d, causal = cell
    return products * 2.0 * b * h * n * n * d / (2 if causal else 1)


def rivals(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Runs:
    """Every SDPA backend, FlexAttention and triton-sigmoid, where they are to be had."""
    torch._dynamo.reset()  # or FlexAttention is left uncompiled after eight shapes
    runs: Runs = {
        name: functools.partial(sdpa, backend, q, k, v, is_causal=causal)
        for name, backend in BACKENDS.items()
    }
    if not TINY:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = None
        if causal:
            mask = create_block_mask(
                lambda b, h, t, s: t >= s, None, None, q.shape[2], k.shape[2], device=DEVICE
            )
        flex = torch.compile(flex_attention, dynamic=False)
        runs["flex"] = functools.partial(flex, q, k, v, block_mask=mask)
    with suppress(ImportError):
        from triton_sigmoid import sigmoid_attention

        last = [x.transpose(1, 2) for x in (q, k, v)]
        runs["triton-sigmoid"] = functools.partial(sigmoid_attention, *last, is_causal=causal)
    return runs


def part_kernels() -> Iterator[dict[str, Any]]:
    """Forward."""
    for cell in cells():
        b, n, h, d, causal = cell
        q, k, v = heads(b, n, h, d)
        runs, errors = rivals(q, k, v, causal), {}
        for name in ("sigmoid", "sigmoid_tanh", "relu", SOFTMAX):
            errors[name] = check(q, k, v, name, causal)
            runs[name] = ours(q, k, v, name, causal)
        yield row(cell, timed(runs), 2, errors=errors, tile=tiles(d)[0].as_dict())


def gradients(run: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Any:
    """One forward and its backward; the output may have heads after tokens."""
    out = run()
    return torch.autograd.grad(
        out if out.shape == grad.shape else out.transpose(1, 2), inputs, grad
    )


def check_gradients(causal: bool, d: int, h: str) -> float:
    """The largest relative error of q, k, v gradients at a small size, against float64.

    Raises:
        SystemExit: the kernels are wrong.
    """
    inputs = heads(1, 48 if TINY else 300, 2, d, grad=True)
    grad = torch.randn_like(inputs[0])
    found = torch.autograd.grad(trained(*inputs, h, causal)(), inputs, grad)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(exact(*wide, None, h, causal), wide, grad.double())
    pairs = zip(found, wanted, strict=True)
    error = max(float((g.double() - w).norm() / w.norm()) for g, w in pairs)
    if not error <= ALLOWED["bfloat16"]:
        raise SystemExit(
            f"gradients of {h}, head dim {d}, causal={causal}: relative error {error:.2g}"
        )
    return error


def part_backward() -> Iterator[dict[str, Any]]:
    """Forward and backward together."""
    for cell in cells():
        b, n, h, d, causal = cell
        q, k, v = inputs = heads(b, n, h, d, grad=True)
        grad, runs = heads(b, n, h, d)[0], rivals(q, k, v, causal)
        errors = {}
        for name in ("sigmoid", "relu", SOFTMAX):
            errors[name] = check_gradients(causal, d, name)
            runs[name] = trained(q, k, v, name, causal)
        both = {k: functools.partial(gradients, run, inputs, grad) for k, run in runs.items()}
        yield row(cell, timed(both, 20), 7, errors=errors, tile=tiles(d)[1].as_dict())


def part_decode() -> Iterator[dict[str, Any]]:
    """Few queries against a cache of fewer heads; ``share``: of the bandwidth of a copy."""
    heads_of = (4, 2, 16) if TINY else (32, 8, 128)
    count, groups, d = heads_of
    found = ceilings()
    for batch in (1,) if TINY else (1, 8):
        for n in (300,) if TINY else (8192, 2048, 32768):
            for queries in (1, 4) if TINY else (1, 4, 16):
                q = heads(batch, queries, count, d)[0]
                k, v = heads(batch, n, groups, d)[1:]
                runs: Runs = {
                    name: functools.partial(sdpa, backend, q, k, v, enable_gqa=True)
                    for name, backend in (BACKENDS | {"math": SDPBackend.MATH}).items()
                }
                errors = {}
                for name in (SOFTMAX, "sigmoid", "relu"):
                    runs[name] = ours(q, k, v, name, False)
                    want = exact(q, k, v, None, name, False)
                    errors[name] = float((runs[name]().double() - want).norm() / want.norm())
                    if not errors[name] <= ALLOWED["bfloat16"]:
                        raise SystemExit(f"decode {name} {n}: relative error {errors[name]:.2g}")
                cell = {"batch": batch, "n": n, "queries": queries, "heads": heads_of}
                times = timed(runs)
                moved = (k.numel() + v.numel()) * k.element_size() / 1e6
                for x in times.values():
                    if isinstance(x, dict) and "ms" in x:
                        x["share"] = moved / x["ms"] / found["copy_gb_per_s"]
                told = {k: round(x["share"], 2) for k, x in times.items() if k in runs}
                print(batch, n, queries, told, times["fails"] or "", flush=True)
                yield {**cell, "errors": errors, **times}


def row(cell: Any, found: dict[str, Any], products: int, **more: Any) -> dict[str, Any]:
    """One line of results with TFLOP/s."""
    for value in found.values():
        if isinstance(value, dict) and "ms" in value:
            value["tflops"] = flops(cell, products) / value["ms"] / 1e9
    out = dict(zip(("batch", "n", "heads", "d", "causal"), cell, strict=True)) | more | found
    told = {k: round(x["tflops"]) for k, x in found.items() if isinstance(x, dict) and "ms" in x}
    print(cell, told, found["fails"] or "", flush=True)
    return out


def part_hydra() -> Iterator[dict[str, Any]]:
    """GB/s of what hydra must move, over those of a copy; and what inductor makes of it."""
    torch._dynamo.reset()
    for n, count in ((64, 2),) if TINY else ((4096, 12), (16384, 16), (65536, 16), (262144, 16)):
        for causal in (False, True):
            q, k, v = heads(1, n, count, 16 if TINY else 64)
            gain, tile = torch.ones(1, count, 1, q.shape[3], device=DEVICE), Tile()
            call = HydraCall(q, k, v, None, gain, causal, 1e-6, tile)
            want = reference.hydra(q, k, v, None, gain, causal=causal, eps=1e-6)
            error = float((hydra_triton_launch.hydra(call).double() - want).norm() / want.norm())
            if not error <= ALLOWED["bfloat16"]:
                raise SystemExit(f"hydra {n} causal={causal}: relative error {error:.2g}")
            source = torch.randn(2 * q.numel(), device=DEVICE).to(DTYPE)
            target, module = (
                torch.empty_like(source),
                forms.Hydra(count, q.shape[3], causal=causal),
            )
            runs: Runs = {
                "copy": functools.partial(target.copy_, source),
                "hydra": functools.partial(hydra_triton_launch.hydra, call),
                "hydra backward": functools.partial(hydra_triton_launch.hydra_backward, q, call),
            }
            if not TINY:
                plain = Tile("aten")
                module = forms.Hydra(count, q.shape[3], causal=causal, tile=plain).to(DEVICE)
                compiled = torch.compile(module, dynamic=False)
                runs["inductor"] = functools.partial(compiled, q, k, v)
            with torch.no_grad():
                found = timed(runs)
            size = 2 * source.numel() * source.element_size() / 1e6
            # the backward reads q, k, v, grad twice and writes three
            moved = {"copy": 1.0, "hydra": 1.0, "inductor": 1.0, "hydra backward": 11 / 4}
            for name, factor in moved.items():
                if name in found:
                    found[name]["gb_per_s"] = factor * size / found[name]["ms"]
            share = found["hydra"]["gb_per_s"] / found["copy"]["gb_per_s"]
            print(n, count, causal, f"{share:.0%} of copy", found["fails"] or "", flush=True)
            yield {"n": n, "heads": count, "causal": causal, "error": error, **found}


def part_phi() -> Iterator[dict[str, Any]]:
    """SkipAt's Phi by inductor, its linear layers alone, and a copy of its input."""
    for batch, side, width in ((1, 4, 32),) if TINY else ((256, 14, 384), (16, 64, 384)):
        torch._dynamo.reset()
        x = torch.randn(batch, side * side, width, device=DEVICE, dtype=DTYPE)
        whole = forms.SkipAt(width, r=1.0, grid=(side, side)).to(DEVICE, DTYPE)
        linears = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)).to(DEVICE, DTYPE)
        target, ready = torch.empty_like(x), (lambda m: m) if TINY else torch.compile
        runs: Runs = {
            "phi": functools.partial(ready(whole), x),
            "linear layers alone": functools.partial(ready(linears), x),
            "copy": functools.partial(target.copy_, x),
        }
        found = {"batch": batch, "n": side * side, "width": width, **timed(runs)}
        print(found, flush=True)
        yield found


class Block(nn.Module):
    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.first(x)).unflatten(-1, (3, self.count, -1))
        q, k, v = (y.transpose(1, 2) for y in qkv.unbind(2))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.second(x))))


def part_models() -> Iterator[dict[str, Any]]:
    """Whole encoders: eager SDPA, inductor, and attnpass with one form in every layer."""
    sizes = [
        ("ViT-S", 384, 6, (px // 16) ** 2 + 1, max(1, 65536 // (px * px // 256)))
        for px in (224, 384, 512, 1024)
    ]
    sizes += [(f"ViT-B{x[0][5:]}", 768, 12, x[3], x[4]) for x in sizes]
    sizes += [("encoder", 768, 12, n, max(1, 32768 // n)) for n in (512, 2048, 8192)]
    for name, width, count, n, batch in [("tiny", 32, 2, 20, 1)] if TINY else sizes:
        torch._dynamo.reset()
        layers = [Block(width, count) for _ in range(2 if TINY else 12)]
        model = nn.Sequential(*layers).to(DEVICE, DTYPE).eval()
        x = torch.randn(batch, n, width, device=DEVICE, dtype=DTYPE)
        inner = {"inner": "eager"} if TINY else {}
        inductor = model if TINY else torch.compile(model)
        runs: Runs = {"inductor": functools.partial(inductor, x)}
        runs["eager"] = functools.partial(model, x)
        for form in ("sigmoid", "relu", "hydra"):
            options = {"form": form, "strict": True, **inner}
            compiled = torch.compile(model, backend="attnpass", options=options)
            runs[form] = functools.partial(compiled, x)
        with torch.no_grad():
            found = timed(runs)
        told = {
            k: round(v["median"], 2) for k, v in found.items() if isinstance(v, dict) and "ms" in v
        }
        print(name, n, told, found["fails"] or "", flush=True)
        yield {"model": name, "width": width, "tokens": n, "batch": batch, **found}


def part_tiles() -> Iterator[dict[str, Any]]:
    """What the search finds beyond the default tiles, at one large size; goes on where it was."""
    from attnpass.store import Store
    from attnpass.tuner.progress import ProgressPrinter
    from attnpass.tuner.tiles import tune

    with Store() as store:
        for d in (64, 128):
            for direction in ("forward", "backward"):
                size = f"1,{WIDTH // d},8192,8192,{d}"
                shape = Shape.parse(size, dtype="bfloat16", device=DEVICE)
                turned = replace(shape, direction=direction)
                found = tune([turned], store, ProgressPrinter(quiet=True), trials=24)
                print(found[0]["class"], found[0]["tile"], found[0]["gain"]["median"], flush=True)
                yield found[0]


def ceilings() -> dict[str, float]:
    """Copy bandwidth in GB/s (read and written) and TFLOP/s of a large bfloat16 product."""
    n, m = (2**16, 64) if TINY else (2**30, 8192)
    source = torch.randn(n, device=DEVICE).to(DTYPE)
    target = torch.empty_like(source)
    a, b = (torch.randn(m, m, device=DEVICE).to(DTYPE) for _ in range(2))
    found = timed({"copy": lambda: target.copy_(source), "product": lambda: a @ b})
    return {
        "copy_gb_per_s": 2 * source.numel() * source.element_size() / found["copy"]["ms"] / 1e6,
        "product_tflops": 2 * m**3 / found["product"]["ms"] / 1e9,
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """TFLOP/s over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = sorted({(r["d"], r["causal"]) for r in rows})
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for (d, causal), axis in zip(kinds, axes[0], strict=True):
        mine = [r for r in rows if (r["d"], r["causal"]) == (d, causal)]
        names = dict.fromkeys(
            k for r in mine for k, x in r.items() if isinstance(x, dict) and "tflops" in x
        )
        for name in names:
            points = sorted((r["n"], r[name]["tflops"]) for r in mine if name in r)
            axis.semilogx(*zip(*points, strict=True), "o-", label=name)
        axis.set_title(f"head dim {d}{', causal' if causal else ''}"), axis.set_xlabel("tokens")
    axes[0][0].set_ylabel("TFLOP/s"), axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    out, part, rows = Path(sys.argv[1]), sys.argv[2], list[dict[str, Any]]()
    torch.manual_seed(0)
    found = {
        "command": f"benchmarks/gpu.sh {part}",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(DEVICE),
        "versions": environment.versions(),
        "kernels": fingerprint.kernels_digest(),
        "ceilings": ceilings(),
        "rows": rows,
    }
    seconds, begun = float(os.environ.get("ATTNPASS_SECONDS", "inf")), time.monotonic()
    with torch.set_grad_enabled(part in ("backward", "tiles")):
        for one in globals()[f"part_{part}"]():
            rows.append(one)
            found["ended_early"] = time.monotonic() - begun > seconds
            out.write_text(json.dumps(found, indent=1) + "\n")
            if found["ended_early"]:
                break
    if part in ("kernels", "backward") and not TINY:
        plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
