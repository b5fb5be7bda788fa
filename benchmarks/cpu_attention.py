"""Attention kernels on the CPU: `python benchmarks/cpu_attention.py [OUT] [PART ...]`.

Ratios are medians of interleaved pairs over `F.scaled_dot_product_attention` on the same tensors,
after a check against float64; an A/A pair gives what cannot be told apart. The floor is the same
kernel with its products alone, plus the same with h alone, both less what is neither (packing,
output); all three are compiled from the kernel's own source. Tensors lie as a model's projection
leaves them, [B, T, H, d]. Tiles are the defaults.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass import environment, fingerprint
from attnpass.kernels import ops, reference
from attnpass.kernels.call import HydraCall
from attnpass.kernels.cpu import build, hydra_launch
from attnpass.kernels.cpu import launch as cpu
from attnpass.kernels.select import default_tile
from attnpass.tuner.measure.latency import floor, interleave, ratio
from attnpass.tuner.tiles.attention_call import ALLOWED

DTYPES = ("float32", "bfloat16")
SIZES = {197: (8, 6), 1024: (1, 12), 4096: (1, 4)}
"""Tokens to batch and heads of the goal cells."""

FORMS = ("sigmoid", "relu", "softmax")

Runs = dict[str, Callable[[], Any]]


def heads(b: int, n: int, h: int, d: int, dtype: str, grad: bool = False) -> list[Tensor]:
    found = (torch.randn(b, n, h, d).to(getattr(torch, dtype)).transpose(1, 2) for _ in range(3))
    return [x.requires_grad_(grad) for x in found]


def around(h: str, n: int, count: int) -> tuple[Tensor, Tensor]:
    """Offset and gain ``[1, H, 1, 1]`` of a form at its start, for n keys."""
    sigmoid = h == "sigmoid"
    values = (-math.log(n), 1.0) if sigmoid else (0.0, 1 / n)
    offset, gain = (torch.full((1, count, 1, 1), x) for x in values)
    return offset, gain


def prepared(q: Tensor, k: Tensor, v: Tensor, h: str, **more: Any) -> Callable[[], Tensor]:
    """A call of the kernel as the forms make it: offset and gain of a head, default tiles."""
    offset, gain = around(h, k.shape[2], q.shape[1])
    bias, keep, causal = more.get("bias"), more.get("keep"), more.get("causal", False)
    rows = causal * q.shape[2]
    tiles = [
        default_tile("cpu", q.shape[3], x, causal=rows).as_list() for x in ("forward", "backward")
    ]
    scale = q.shape[3] ** -0.5
    if h == "softmax":
        return lambda: ops.softmax(q, k, v, bias, keep, scale, causal, *tiles)[0]
    terms = (bias, keep, None, offset, gain, scale, h, causal)
    return lambda: ops.pointwise(q, k, v, *terms, *tiles)


def fused(q: Tensor, k: Tensor, v: Tensor, h: str, **more: Any) -> Tensor:
    """The kernel's result: see ``prepared``."""
    return prepared(q, k, v, h, **more)()


def check(q: Tensor, k: Tensor, v: Tensor, h: str, **more: Any) -> float:
    """Relative error against float64 of some rows.

    Raises:
        SystemExit: the kernel is wrong.
    """
    with torch.no_grad():
        got = fused(q, k, v, h, **more)
    rows, n = torch.linspace(0, q.shape[2] - 1, 32).round().long().unique(), k.shape[2]
    keep = torch.arange(n) <= rows[:, None] if more.get("causal") else torch.ones(1, n).bool()
    if more.get("keep") is not None:
        keep = keep & more["keep"].expand(-1, -1, q.shape[2], n)[:, :, rows]
    bias = more["bias"][:, :, rows] if more.get("bias") is not None else None
    offset, gain = around(h, n, q.shape[1])
    scale = q.shape[3] ** -0.5
    inputs = (q[:, :, rows], k, v, bias, keep, None, offset, gain)
    if h == "softmax":
        want = reference.softmax(*inputs[:5], scale=scale, causal=False, fill=-math.inf)
    else:
        want = reference.pointwise(*inputs, scale=scale, h=h, causal=False)
    error = float((got[:, :, rows].double() - want).norm() / want.norm())
    if not error <= ALLOWED[str(q.dtype).removeprefix("torch.")]:
        raise SystemExit(f"{h} {q.dtype} {tuple(q.shape)}: relative error {error:.2g}")
    return error


def timed(runs: Runs, seconds: float = 3.0, least: int = 9) -> dict[str, Any]:
    """Median milliseconds of each run, and its speed-up over the first (which runs twice)."""
    names = list(runs)
    series = [runs[names[0]], *runs.values()]
    once = sum(min(t) for t in interleave(series, rounds=2, warmup=1))
    rounds = int(min(61, max(least, 1e3 * seconds / once)))
    again, *times = interleave(series, rounds=rounds, warmup=0)
    out: dict[str, Any] = {"rounds": rounds, "floor": floor(times[0], again)}
    for name, row in zip(names, times, strict=True):
        out[name] = {"ms": statistics.median(row), **ratio(times[0], row).as_dict()}
    return out


def without(*parts: str) -> Any:
    """The forward kernel compiled without its products, or without h."""
    own = [f for f in build.PARTS["pointwise"] if "operators" not in f]
    source = "".join((build.HERE / f).read_text() for f in (*build.SHARED, *own))
    calls = {"products": "    product<Mul>(", "h": "      rows_now.weigh("}
    for part in parts:
        assert calls[part] in source
        source = source.replace(
            calls[part],
            calls[part].replace(calls[part].strip(), "if (false) " + calls[part].strip()),
        )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "pieces.so")
        build.compile_source(source, build.instruction_set(), target)
        return ctypes.CDLL(str(target))


@contextmanager
def using(library: Any) -> Iterator[None]:
    """Every call by another library."""
    found, cpu.library = cpu.library, lambda name: library  # type: ignore[assignment]
    found("pointwise").serve(False)  # type: ignore[union-attr]
    try:
        yield
    finally:
        cpu.library = found
        found("pointwise").serve(True)  # type: ignore[union-attr]


def part_goals() -> list[dict[str, Any]]:
    """Forward of the goal cells with their floor."""
    pieces = {
        "products alone": without("h"),
        "h alone": without("products"),
        "neither": without("h", "products"),
    }
    rows = []
    for n, (b, count) in SIZES.items():
        for dtype in DTYPES:
            for d in (64, 128):
                for h in FORMS:
                    q, k, v = heads(b, n, count, d, dtype)

                    def piece(library: Any, q=q, k=k, v=v, h=h) -> Any:
                        with using(library):
                            return fused(q, k, v, h)

                    error = check(q, k, v, h)
                    runs: Runs = {
                        "sdpa": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
                        "attnpass": lambda q=q, k=k, v=v, h=h: fused(q, k, v, h),
                    }
                    for name, library in pieces.items():
                        runs[name] = lambda piece=piece, library=library: piece(library)
                    found = timed(runs)
                    ms = {x: found[x]["ms"] for x in runs}
                    least = ms["products alone"] + ms["h alone"] - 2 * ms["neither"]
                    gflops = 4 * b * count * n * n * d / 1e6
                    products = ms["products alone"] - ms["neither"]
                    rows.append(
                        {
                            **{"n": n, "batch": b, "heads": count, "d": d},
                            **{"dtype": dtype, "h": h, "error": error, **found},
                            "least_ms": least,
                            "over_least": ms["attnpass"] / least,
                            "over_pieces": ms["attnpass"] / (least + ms["neither"]),
                            "gflops": gflops / ms["attnpass"],
                            "gflops_products_alone": gflops / products,
                            "speedup_if_products_alone": ms["sdpa"] / products,
                        }
                    )
                    say(rows[-1], "attnpass")
    return rows


def part_backward() -> list[dict[str, Any]]:
    """Forward and backward of the goal cells."""
    rows = []
    for n, (b, count) in SIZES.items():
        for dtype in DTYPES:
            for d in (64, 128):
                q, k, v = inputs = heads(b, n, count, d, dtype, grad=True)
                grad = heads(b, n, count, d, dtype)[0]

                def both(f: Callable[..., Tensor], inputs=inputs, grad=grad) -> Any:
                    return torch.autograd.grad(f(*inputs), inputs, grad)

                runs: Runs = {"sdpa": lambda both=both: both(F.scaled_dot_product_attention)}
                for h in FORMS:
                    runs[h] = lambda both=both, h=h: both(functools.partial(fused, h=h))
                sizes = {"n": n, "batch": b, "heads": count, "d": d, "dtype": dtype}
                rows.append({**sizes, **timed(runs)})
                say(rows[-1], *FORMS)
    return rows


def part_sweep() -> list[dict[str, Any]]:
    """Sigmoid forward from 64 to 16 384 tokens and head dims 32 to 128."""
    rows = []
    for n, (b, count) in {64: (32, 4), 256: (8, 4), 2048: (1, 4), 16384: (1, 1)}.items():
        for dtype in DTYPES:
            for d in (32, 64, 96, 128):
                q, k, v = heads(b, n, count, d, dtype)
                error = check(q, k, v, "sigmoid")
                runs: Runs = {
                    "sdpa": lambda a=(q, k, v): F.scaled_dot_product_attention(*a),
                    "sigmoid": lambda a=(q, k, v): fused(*a, "sigmoid"),
                }
                sizes = {"n": n, "batch": b, "heads": count, "d": d, "dtype": dtype}
                rows.append({**sizes, "error": error, **timed(runs, 1.5, least=5)})
                say(rows[-1], "sigmoid")
    return rows


def part_short() -> list[dict[str, Any]]:
    """Softmax from 16 to 160 tokens, forward, and forward and backward: where it begins to win."""
    rows = []
    for n in (16, 32, 48, 64, 96, 128, 160):
        for b, dtype in itertools.product((1, 8), DTYPES):
            for d in (32, 64, 128):
                inputs = heads(b, n, 12, d, dtype, grad=True)
                grad = heads(b, n, 12, d, dtype)[0]

                def forward(f: Callable[..., Tensor], inputs=inputs) -> Any:
                    with torch.no_grad():
                        return f(*inputs)

                def both(f: Callable[..., Tensor], inputs=inputs, grad=grad) -> Any:
                    return torch.autograd.grad(f(*inputs), inputs, grad)

                error = check(*(x.detach() for x in inputs), "softmax")
                row = {"n": n, "batch": b, "heads": 12, "d": d, "dtype": dtype, "error": error}
                ours = functools.partial(fused, h="softmax")
                for name, way in {"forward": forward, "both": both}.items():
                    runs: Runs = {
                        "sdpa": functools.partial(way, F.scaled_dot_product_attention),
                        "softmax": functools.partial(way, ours),
                    }
                    found = timed(runs, 0.5)
                    row |= {name: found["softmax"], f"{name} floor": found["floor"]}
                say(row, "forward", "both")
                rows.append(row)
    return rows


def part_decode() -> list[dict[str, Any]]:
    """One to sixteen queries against a cache of keys, which is a part of a longer static one.

    ``read``: the bytes of keys and values over the time of a sum of as many numbers; a call whose
    ``share_of_read`` is 1 takes no longer than reading them.
    """
    rows = []
    shapes = itertools.product(((32, 8, 128), (12, 12, 64)), (1, 4, 16), (512, 2048, 8192, 32768))
    for ((count, groups, d), t, s), dtype in itertools.product(shapes, DTYPES):
        q = torch.randn(1, count, t, d).to(getattr(torch, dtype))
        k, v = (torch.randn(1, groups, s + 64, d).to(q.dtype)[:, :, :s] for _ in range(2))
        wide = [x.repeat_interleave(count // groups, 1) for x in (k, v)]
        error = max(check(q, *wide, h) for h in FORMS)
        numbers = torch.randn(2, groups * s * d).to(q.dtype)
        runs: Runs = {
            "sdpa": lambda a=(q, k, v): F.scaled_dot_product_attention(*a, enable_gqa=True),
            **{h: prepared(q, k, v, h) for h in FORMS},
            "read": lambda x=numbers: x.sum(),
        }
        found = timed(runs, 2.0)
        size = numbers.numel() * numbers.element_size() / 1e6
        row = {"n": s, "queries": t, "heads": count, "groups": groups, "d": d, "dtype": dtype}
        row |= {"error": error, **found, "read_gb_per_s": size / found["read"]["ms"]}
        row |= {"share_of_read": {h: found["read"]["ms"] / found[h]["ms"] for h in FORMS}}
        say(row, *FORMS)
        rows.append(row)
    return rows


def part_masks() -> list[dict[str, Any]]:
    """Forward under masks and with a bias."""
    rows, d = [], 64
    for n, (b, count) in {197: (8, 6), 1024: (2, 6), 4096: (1, 4)}.items():
        for dtype in DTYPES:
            q, k, v = heads(b, n, count, d, dtype)
            lengths = torch.linspace(n, n / 2, b).round().view(b, 1, 1, 1)
            cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
                "causal": ({"is_causal": True}, {"causal": True}),
                "padding": ({}, {"keep": torch.arange(n) < lengths}),
                "boolean": ({}, {"keep": torch.rand(b, 1, n, n) < 0.8}),
                "bias": ({}, {"bias": torch.randn(1, count, n, n).to(q.dtype)}),
            }
            for name, (theirs, ours) in cases.items():
                if not theirs:
                    theirs = {"attn_mask": next(iter(ours.values()))}
                runs: Runs = {
                    "sdpa": lambda a=(q, k, v), o=theirs: F.scaled_dot_product_attention(*a, **o)
                }
                for h in ("sigmoid", "softmax"):
                    check(q, k, v, h, **ours)
                    runs[h] = lambda a=(q, k, v), o=ours, h=h: fused(*a, h, **o)
                sizes = {"n": n, "batch": b, "heads": count, "d": d, "dtype": dtype}
                rows.append({**sizes, "mask": name, **timed(runs, 2.0)})
                say(rows[-1], "sigmoid", "softmax")
    return rows


def part_others() -> list[dict[str, Any]]:
    """What inductor makes of attention written out, and FlexAttention, where they run."""
    from torch.nn.attention.flex_attention import flex_attention

    rows, d = [], 64
    for n, (b, count) in SIZES.items():
        for dtype in DTYPES:
            torch._dynamo.reset()
            q, k, v = heads(b, n, count, d, dtype)

            def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return (q @ k.transpose(-1, -2) * d**-0.5).softmax(-1) @ v

            compiled = torch.compile(eager, dynamic=False, options={"pattern_matcher": False})
            flex = torch.compile(flex_attention, dynamic=False)
            runs: Runs = {
                "sdpa": lambda a=(q, k, v): F.scaled_dot_product_attention(*a),
                "compiled eager": lambda a=(q, k, v), f=compiled: f(*a),
                "flex": lambda a=(q, k, v), f=flex: f(*a),
                "sigmoid": lambda a=(q, k, v): fused(*a, "sigmoid"),
            }
            row: dict[str, Any] = {"n": n, "batch": b, "heads": count, "d": d, "dtype": dtype}
            try:
                runs["flex"]()
            except Exception as error:
                row["flex_fails"] = str(error).strip().splitlines()[0][:200]
                del runs["flex"]
            rows.append({**row, **timed(runs, 2.0)})
            say(rows[-1], *list(runs)[1:])
    return rows


def part_hydra() -> list[dict[str, Any]]:
    """Hydra over SDPA, and its bytes over copy bandwidth, with and without a fresh output."""
    rows, d = [], 64
    for n, count in ((197, 6), (1024, 12), (4096, 4), (4096, 12), (16384, 12)):
        for dtype in DTYPES:
            q, k, v = heads(1, n, count, d, dtype)
            gain, tile = torch.ones(1, count, 1, d), default_tile("cpu", d)

            def hydra(causal: bool = False, a=(q, k, v), gain=gain, tile=tile) -> Tensor:
                return hydra_launch.hydra(HydraCall(*a, None, gain, causal, 1e-6, tile))

            want = reference.hydra(q, k, v, None, gain, causal=False, eps=1e-6)
            error = float((hydra().double() - want).norm() / want.norm())
            assert error <= ALLOWED[dtype], error
            problem = hydra_launch.problem(HydraCall(q, k, v, None, gain, False, 1e-6, tile))
            out, partial = torch.empty_like(q), problem.sums()
            source = torch.randn(2 * q.numel()).to(q.dtype)
            target = torch.empty_like(source)
            runs: Runs = {
                # as many bytes as hydra must move: three reads, one write
                "copy": lambda t=target, s=source: t.copy_(s),
                "hydra, output given": lambda p=problem, o=out, s=partial: hydra_launch.write(
                    p, o, s
                ),
                "clone": lambda s=source: s.clone(),
                "hydra": hydra,
                "hydra causal": lambda f=hydra: f(True),
            }
            found = timed(runs, 2.0)
            size = 2 * source.numel() * source.element_size() / 1e6
            row = {"n": n, "heads": count, "d": d, "dtype": dtype, "error": error, **found}
            row["copy_gb_per_s"] = size / found["copy"]["ms"]
            row["share_of_copy"] = found["copy"]["ms"] / found["hydra, output given"]["ms"]
            row["share_of_clone"] = found["clone"]["ms"] / found["hydra"]["ms"]
            if n <= 4096:
                over: Runs = {
                    "sdpa": lambda a=(q, k, v): F.scaled_dot_product_attention(*a),
                    "hydra": hydra,
                }
                row["over_sdpa"] = timed(over, 1.0)["hydra"]
            rows.append(row)
            print({x: row[x] for x in ("n", "heads", "dtype", "share_of_copy", "share_of_clone")})
            print(row.get("over_sdpa"), flush=True)
    return rows


def part_growth() -> list[dict[str, Any]]:
    """Time and peak memory from 64 to 16 384 tokens, 2 heads of 64; each in a fresh process."""
    rows = []
    for n in (64, 256, 1024, 4096, 16384):
        ours = [f"{h}{x}" for h in ("softmax", "sigmoid") for x in ("", ", causal", ", backward")]
        for which in ("sdpa", "eager", "hydra", *ours):
            if which == "eager" and n > 4096:
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--one", which, str(n)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows.append({"n": n, "which": which, **json.loads(done.stdout)})
            print(rows[-1], flush=True)
    return rows


def one(which: str, n: int) -> dict[str, float]:
    """Median milliseconds, and bytes of memory beyond the inputs at the peak of one call."""
    grad = which.endswith("backward")
    q, k, v = heads(1, n, 2, 64, "float32", grad)
    name = which.split(",")[0]

    def run() -> Any:
        if name == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if name == "eager":
            return (q @ k.transpose(-1, -2) * 0.125).softmax(-1) @ v
        if name == "hydra":
            call = HydraCall(q, k, v, None, None, False, 1e-6, default_tile("cpu", 64))
            return hydra_launch.hydra(call)
        out = fused(q, k, v, name, causal="causal" in which)
        return torch.autograd.grad(out.sum(), (q, k, v)) if grad else out

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024

    with torch.set_grad_enabled(grad):
        small = (x[:, :, :64] for x in (q, k, v))
        fused(
            *small, name if name in FORMS else "sigmoid"
        )  # compiles, and loads what is loaded once
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        run()
        used = peak() - before
        times = interleave([run], rounds=9, warmup=1)[0]
    return {"ms": statistics.median(times), "bytes": used}


def say(row: dict[str, Any], *names: str) -> None:
    kind = {
        k: row[k]
        for k in ("n", "queries", "d", "dtype", "h", "mask", "form", "causal", "over_least")
        if k in row
    }
    told = [
        f"{n} {row[n]['median']:.2f} [{row[n]['low']:.2f}, {row[n]['high']:.2f}]" for n in names
    ]
    print(kind, *told, flush=True)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """The rows of ``benchmarks/NAME.py`` to the file that was named, else among the results."""
    default = f"benchmarks/results/{name}_cpu.json"
    found = {
        "command": f"python benchmarks/{name}.py",
        "date": time.strftime("%Y-%m-%d"),
        "device": environment.device(),
        "versions": environment.versions(),
        "kernels": fingerprint.kernels_digest(),
        "rows": rows,
    }
    Path(sys.argv[1] if len(sys.argv) > 1 else default).write_text(
        json.dumps(found, indent=1) + "\n"
    )


def geomean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The goals' figures."""
    out: dict[str, Any] = {}
    for h in FORMS:
        rows = [r for r in found.get("goals", []) if r["h"] == h]
        if rows:
            out[h] = {
                "geomean": geomean([r["attnpass"]["median"] for r in rows]),
                "least": min(r["attnpass"]["median"] for r in rows),
                "over_least": max(r["over_least"] for r in rows),
                "over_pieces": max(r["over_pieces"] for r in rows),
                "ceiling": geomean([r["speedup_if_products_alone"] for r in rows]),
            }
        for dtype in DTYPES:
            own = [r["attnpass"]["median"] for r in rows if r["dtype"] == dtype]
            if own:
                out[f"{h} {dtype}"] = {"geomean": geomean(own), "least": min(own)}
        backward = [r for r in found.get("backward", []) if h in r]
        for dtype in ("", *DTYPES):
            both = [r[h]["median"] for r in backward if dtype in r["dtype"]]
            if both:
                name = f"{h} forward+backward {dtype}".strip()
                out[name] = {"geomean": geomean(both), "least": min(both)}
    return out


def plot(found: dict[str, Any], path: Path) -> None:
    """Speed-up over SDPA per cell, and growth with the number of tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5))
    cells = [r for r in found["goals"] if r["h"] == "sigmoid"]
    for place, h in enumerate(FORMS):
        values = [r["attnpass"]["median"] for r in found["goals"] if r["h"] == h]
        left.bar([i + 0.27 * (place - 1) for i in range(len(values))], values, 0.27, label=h)
    least = [r["speedup_if_products_alone"] for r in found["goals"] if r["h"] == "sigmoid"]
    left.plot(range(len(least)), least, "k_", markersize=18, label="products alone")
    left.axhline(1, color="gray", linewidth=0.8)
    names = [f"{r['n']}\n{r['d']}\n{r['dtype'][:2] + r['dtype'][-2:]}" for r in cells]
    left.set_xticks(range(len(cells)), names, fontsize=8)
    left.set_ylabel("times SDPA"), left.legend()
    for which in dict.fromkeys(r["which"] for r in found["growth"]):
        rows = [r for r in found["growth"] if r["which"] == which]
        right.loglog([r["n"] for r in rows], [r["ms"] for r in rows], "o-", label=which)
    right.set_xlabel("tokens"), right.set_ylabel("ms (2 heads of 64)"), right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


PARTS = {
    "goals": part_goals,
    "backward": part_backward,
    "sweep": part_sweep,
    "short": part_short,
    "decode": part_decode,
    "masks": part_masks,
    "others": part_others,
    "hydra": part_hydra,
    "growth": part_growth,
}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]))))
        return
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/cpu_attention_cpu.json")
    found = json.loads(out.read_text()) if out.exists() and sys.argv[2:] else {}
    torch.manual_seed(0)
    for name in sys.argv[2:] or PARTS:
        with torch.set_grad_enabled(name in ("backward", "short")):
            found[name] = PARTS[name]()
        found |= {
            "command": "python benchmarks/cpu_attention.py",
            "date": time.strftime("%Y-%m-%d"),
            "device": environment.device(),
            "versions": environment.versions(),
            "kernels": fingerprint.kernels_digest(),
            "summary": summary(found),
        }
        out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))
    if {"goals", "growth"} <= set(found):
        plot(found, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
