"""Every verdict on every model of the corpus, beside what is true and what inductor matches.

python -m zoo.census             run all, compare with the golden census, print and keep the table
python -m zoo.census --write     the same, and make what was found the golden census; with a
                                 package or words, in the result too
python -m zoo.census timm hiera  one package or group, or models whose name holds a word
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.utils._pytree as pytree
from torch import nn

import attnpass
from attnpass import forms
from zoo import GROUPS, PACKAGES, Spec, specs
from zoo.truth import Truth

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
RESULT = HERE.parent.parent / "benchmarks" / "results" / "census_cpu.json"
EXACT = 1e-5
"""Largest relative difference (norm over norm) of the round trip, forward and gradients.

Gradients are taken in float64, but many models compute softmax in float32 whatever they are given.
"""
NARROW = 1.5
"""Largest ratio of the round trip's error in bf16 to that of the eager model."""
DISTRIBUTIONS = ("torch", "transformers", "timm", "torchvision", "diffusers", "open_clip_torch")
DISTRIBUTIONS += ("x-transformers", "vit-pytorch", "monai")
"""What is installed for the corpus."""
VERDICT = (
    *("true", "sites", "kinds", "masks", "degrees", "logits", "declined", "refused", "graphs"),
)
"""The fields of a record that the golden census holds."""


def built(
    spec: Spec, impl: str, seed: int = 0, *, reset: bool = True
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model in evaluation mode, no parameter at a start that hides a mistake.

    With a ``reset`` what was captured before is captured again when it is called.
    """
    if reset:
        torch._dynamo.reset()
    torch.manual_seed(seed)
    model, args, kwargs = spec.build(impl)
    model.eval()
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised projections, layer scale, bias tables
            if p.is_floating_point():
                p += 0.05 * torch.randn_like(p)
    return model, args, kwargs


def outputs(result: Any) -> list[torch.Tensor]:
    """The float tensors that a model returns."""
    result = result.to_tuple() if hasattr(result, "to_tuple") else result
    tensors = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
    return [x for x in tensors if x.is_floating_point() and x.numel()]


def run(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Outputs; random numbers drawn inside are the same every time."""
    torch.manual_seed(1)
    return outputs(model(*args, **kwargs))


def relative(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """The largest difference, norm over norm; where the reference is not finite, both must be."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        keep = torch.isfinite(b)
        if not torch.equal(keep, torch.isfinite(a)):
            return float("inf")
        a, b = a[keep].double(), b[keep].double()
        worst = max(worst, float((a - b).norm() / b.norm().clamp_min(1e-12)))
    return worst


def rewritten(model: nn.Module, args: Any, kwargs: Any) -> attnpass.Capture:
    """The captured model with every site rewritten to softmax from what was extracted."""
    capture = attnpass.Capture(model)
    run(capture, args, kwargs)
    capture.use_modules({s.name: forms.build("softmax", s) for s in capture.sites})
    return capture


def record(spec: Spec, impl: str) -> dict[str, Any]:
    """The verdicts on one model, the truth, and the round trip in three precisions."""
    model, args, kwargs = built(spec, impl)
    with torch.no_grad():
        want = run(model, args, kwargs)
        truth = Truth(model)
        with truth:
            run(model, args, kwargs)
        capture = rewritten(model, args, kwargs)
        float32 = relative(run(capture, args, kwargs), want)
    sites = capture.sites
    illegal = [s.name for s in sites if s.legal["softmax"] is not None]
    masks = collections.Counter(",".join(sorted(s.mask) + ["bias"] * s.bias) for s in sites)
    out = {
        "package": spec.package,
        "name": spec.name,
        "impl": impl,
        "true": truth.attention + spec.mixed,
        "sites": len(sites),
        "kinds": dict(sorted(collections.Counter(s.kind for s in sites).items())),
        "masks": dict(sorted(masks.items())),
        "degrees": dict(sorted(collections.Counter(s.degree for s in sites).items())),
        "logits": dict(sorted(collections.Counter(filter(None, map(_unread, sites))).items())),
        "declined": dict(sorted(collections.Counter(d.code for d in capture.declined).items())),
        "refused": dict(sorted(collections.Counter(_refused(sites)).items())),
        "graphs": len(capture.graphs),
        "float32": float32,
        "illegal": illegal,
    }
    return out


def _refused(sites: list[attnpass.AttentionSite]) -> list[str]:
    """The reasons for which a site does not allow some form, each once a site."""
    return [code for s in sites for code in {d.code for d in s.legal.values() if d is not None}]


def _unread(site: attnpass.AttentionSite) -> str:
    """Why no more than the softmax of a site is known; ``""`` where more is."""
    why = site.legal["hydra"]
    return why.code if site.degree == "logits" and why is not None else ""


def gradients(spec: Spec, impl: str, dtype: torch.dtype = torch.float64) -> float | None:
    """Round trip of the parameters' gradients, relative to all of them.

    None where the model gives none in evaluation mode. Of a norm's output the squares sum up to
    a constant, so that the loss is another. Entries that eager leaves without a number (a row
    without a key) are not compared.
    """

    def grads(wrap: Any) -> list[torch.Tensor]:
        model, args, kwargs = built(spec, impl)  # anew: some models keep graphs of an evaluation
        model = model.to(dtype)
        args, kwargs = pytree.tree_map(_cast(dtype), (args, kwargs))
        out = run(wrap(model, args, kwargs), args, kwargs)
        loss = sum(x.sin().mean() for x in out if x.requires_grad)
        weights = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return [torch.cat([g.flatten() for g in found if g is not None])]

    try:
        want = grads(lambda model, args, kwargs: model)
    except AssertionError:  # the model's own: it has gradients in training alone
        return None
    except RuntimeError:  # operators without float64, constants of float32
        if dtype == torch.float32:
            raise
        return gradients(spec, impl, torch.float32)
    given = [x.isfinite() for x in want]
    got = [x[keep] for x, keep in zip(grads(rewritten), given, strict=True)]
    return relative(got, [x[keep] for x, keep in zip(want, given, strict=True)])


def bfloat16(spec: Spec, impl: str) -> tuple[float, float] | None:
    """Error of the round trip in bf16 against float32, and that of the eager model.

    Both are a roll of rounding errors: where the first is the larger by half, the means of eight
    starts are compared. None where the eager model does not run in bf16.
    """
    model, args, kwargs = built(spec, impl)
    narrow = pytree.tree_map(_cast(torch.bfloat16), (args, kwargs))
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        try:
            run(model, *narrow)
        except RuntimeError:
            return None
        capture = rewritten(model, *narrow)
        found = [_errors(spec, impl, model, capture, 0)]
        if found[0][0] > NARROW * found[0][1]:
            found += [_errors(spec, impl, model, capture, seed) for seed in range(1, 8)]
    return statistics.mean(x for x, _ in found), statistics.mean(y for _, y in found)


def _errors(
    spec: Spec, impl: str, model: nn.Module, capture: attnpass.Capture, seed: int
) -> tuple[float, float]:
    """The two errors with the weights and inputs of one seed; ``model``, captured, is in bf16."""
    exact, args, kwargs = built(spec, impl, seed, reset=False)
    want = run(exact, args, kwargs)
    # anew: a run may have changed its state
    exact, args, kwargs = built(spec, impl, seed, reset=False)
    narrow = pytree.tree_map(_cast(torch.bfloat16), (args, kwargs))
    known = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in (*exact.named_parameters(), *exact.named_buffers()):
        known[name].copy_(value)
    eager = relative(run(model, *narrow), want)
    return relative(run(capture, *narrow), want), eager


def _cast(dtype: torch.dtype) -> Any:
    return lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def inductor(spec: Spec, impl: str) -> int:
    """Attentions that inductor's own matcher replaces in the compiled model."""
    from torch._dynamo.utils import counters
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._inductor.compile_fx import compile_fx

    model, args, kwargs = built(spec, impl)

    def matched_only(gm: Any, inputs: Any) -> Any:
        # the joint graph passes run before the inner compiler, which is not needed here
        return compile_fx(gm, inputs, inner_compile=lambda g, *_, **__: make_boxed_func(g.forward))

    counters.clear()
    with torch.no_grad(), torch._functorch.config.patch(enable_autograd_cache=False):
        run(torch.compile(model, backend=matched_only), args, kwargs)
    return counters["inductor"]["fuse_attention"]


@cache
def counted() -> dict[str, int]:
    """What inductor's matcher was found to replace, by key, where torch and packages are the same.

    Nothing of this project decides it.
    """
    if not RESULT.exists():
        return {}
    stored = json.loads(RESULT.read_text())
    same = stored["versions"] == versions()
    return {
        key(f): f["inductor"] for f in stored["models"] if f.get("inductor") is not None and same
    }


def versions() -> dict[str, str]:
    """The installed versions of torch and of the packages of the corpus."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """What the golden census holds of a record."""
    return {key: found[key] for key in VERDICT}


def key(found: dict[str, Any]) -> str:
    """The name of a record in the golden census."""
    return f"{found['package']}/{found['name']}/{found['impl']}"


def problems(spec: Spec, found: dict[str, Any]) -> list[str]:
    """What is wrong with a record in itself."""
    out = []
    if found["illegal"]:
        out.append(f"softmax cannot be put back at {found['illegal']}")
    if not found["float32"] <= EXACT:
        out.append(f"round trip differs by {found['float32']:.1e}")
    if not (found.get("gradients") or 0.0) <= EXACT:
        out.append(f"gradients differ by {found['gradients']:.1e}")
    if found.get("bfloat16") and not found["bfloat16"][0] <= NARROW * found["bfloat16"][1]:
        out.append("bf16: {:.1e}, eager {:.1e}".format(*found["bfloat16"]))
    unexplained = set(found["declined"]) - set(spec.why)
    if unexplained:
        out.append(f"declined without a reason in the corpus: {sorted(unexplained)}")
    missing = found["true"] - found["sites"]
    if missing < 0 or missing > sum(found["declined"].values()) and "CROSS_GRAPH" not in spec.why:
        out.append(f"{found['true']} attentions, {found['sites']} sites")
    return out


def package(name: str, words: list[str], *, full: bool, recount: bool) -> list[dict[str, Any]]:
    """The records of one package. ``recount``: what inductor matches is counted in any case."""
    out = []
    for spec in specs(name):
        if words and not any(w in spec.name for w in words):
            continue
        for impl in spec.impls:
            began = time.perf_counter()
            found: dict[str, Any] = {"package": spec.package, "name": spec.name, "impl": impl}
            try:
                found = record(spec, impl)
                if full and found["sites"]:  # else nothing was rewritten
                    found["gradients"] = gradients(spec, impl)
                    found["bfloat16"] = bfloat16(spec, impl) if impl == "eager" else None
                if full and impl == "eager":
                    known = None if recount else counted().get(key(found))
                    found["inductor"] = inductor(spec, impl) if known is None else known
                found["problems"] = problems(spec, found)
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                found["problems"] = [f"{type(error).__name__}: {first[:200]}"]
            found["seconds"] = round(time.perf_counter() - began, 1)
            out.append(found)
            print(json.dumps(found), flush=True)
    return out


def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per package: models, true attentions, ours, inductor's (of the eager models)."""
    rows = []
    for name in dict.fromkeys((*PACKAGES, *(f["package"] for f in found))):
        mine = [f for f in found if f["package"] == name and "true" in f]
        eager = [f for f in mine if f["impl"] == "eager"]
        rows.append(
            {
                "package": name,
                "architectures": len({f["name"] for f in mine}),
                "models": len(mine),
                "true": sum(f["true"] for f in mine),
                "sites": sum(f["sites"] for f in mine),
                "logits": sum(f["degrees"].get("logits", 0) for f in mine),
                "block": sum(f["degrees"].get("block", 0) for f in mine),
                "eager true": sum(f["true"] for f in eager),
                "eager sites": sum(f["sites"] for f in eager),
                "inductor": sum(min(f.get("inductor") or 0, f["true"]) for f in eager),
            }
        )
    total = {k: sum(r[k] for r in rows) for k in rows[0] if k != "package"}
    return [*rows, {"package": "all", **total}]


def main() -> int:
    """Run the census; the exit status says whether it is as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true", help="float32 forward only")
    parser.add_argument("--recount", action="store_true", help="count inductor's matches anew")
    parser.add_argument("--worker", action="store_true")
    given = parser.parse_args()
    known = (*PACKAGES, *GROUPS)
    names = [w for w in given.words if w in known]
    words = [w for w in given.words if w not in known]
    if given.worker:
        _quiet()
        package(names[0], words, full=not given.quick, recount=given.recount)
        return 0
    began = time.perf_counter()
    flags = [f"--{x}" for x in ("quick", "recount") if getattr(given, x)]
    found = _all(names or list(PACKAGES), [*words, *flags])
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if given.write and not set(names) & set(GROUPS):
        golden |= {key(f): verdict(f) for f in found if "true" in f}
        GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    for f in found:
        if "true" in f and not set(names) & set(GROUPS) and golden.get(key(f)) != verdict(f):
            f["problems"].append(f"golden census: {golden.get(key(f))}, got {verdict(f)}")
    rows = table(found)
    _show(rows, found, time.perf_counter() - began)
    if not given.quick and not set(names) & set(GROUPS):
        if not (words or names):
            _write(rows, found, time.perf_counter() - began)
        elif given.write:  # the models that were asked for take their places in the result
            old = json.loads(RESULT.read_text())
            new = {key(f): f for f in found}
            every = [new.get(key(f), f) for f in old["models"]]
            _write(table(every), every, old["seconds"])
    return int(any(f["problems"] for f in found))


def _all(names: list[str], words: list[str]) -> list[dict[str, Any]]:
    """Records of several packages, two processes at a time, the largest first."""
    waiting = sorted(names, key=("transformers", "timm", "vit_pytorch").__contains__, reverse=True)
    out: list[dict[str, Any]] = []
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda name: _worker(name, words), waiting):
            out += found
    return out


def _worker(name: str, words: list[str]) -> list[dict[str, Any]]:
    """The records of one package, from a process of its own; ``words``: and its flags."""
    command = [sys.executable, "-m", "zoo.census", "--worker", name, *words]
    out = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                out.append(json.loads(line))
                print(_line(out[-1]), flush=True)
    if process.returncode:
        raise SystemExit(f"census of {name} stopped with {process.returncode}")
    return out


def _line(f: dict[str, Any]) -> str:
    wrong = "; ".join(f["problems"])
    return (
        f"{'BAD' if wrong else 'ok '} {key(f):48s} true {f.get('true', '?'):>3} "
        f"sites {f.get('sites', '?'):>3} inductor {f.get('inductor')!s:>4} "
        f"{f.get('declined') or ''} {f['seconds']:.0f}s {wrong}"
    )


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    import shim

    shim.torchvision()


def _show(rows: list[dict[str, Any]], found: list[dict[str, Any]], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Table(title=f"{rows[-1]['architectures']} architectures, {seconds:.0f} s")
    for column in rows[0]:
        out.add_column(column)
    for row in rows:
        if row["models"]:
            out.add_row(*(str(v) for v in row.values()))
    Console(width=120).print(out)
    for f in found:
        if f["problems"]:
            print(_line(f))


def _write(rows: list[dict[str, Any]], found: list[dict[str, Any]], seconds: float) -> None:
    why = {f"{s.package}/{s.name}": s.why for s in specs() if s.why}
    RESULT.write_text(
        json.dumps(
            {
                "command": "make census",
                "date": time.strftime("%Y-%m-%d"),
                "versions": versions(),
                "seconds": round(seconds),
                "table": rows,
                "models": found,
                "why": why,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
