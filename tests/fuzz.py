"""Random spellings of attention, and of what only looks like it, against an independent reference.

    python fuzz.py --graphs 10000 --seed 1    many graphs, in two processes; prints a summary

A case is a meaning (sizes, mask, scale) and a spelling (contraction, layout, casts, ...). The
meaning fixes the record that must be found and what softmax and sigmoid attention must give.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import attnpass
from attnpass import forms
from attnpass.graph.normal_form import tidy
from attnpass.matching.verdicts import anchors, match
from attnpass.rewrite.rewriter import rewrite

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "fuzz_cpu.json"
BOUND = 1e-10
"""Largest relative difference in float64."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "sizes": ("distinct", "equal", "one-query", "single"),
    "source": ("inputs", "separate", "packed", "cross"),
    "layout": ("heads", "heads", "tokens", "flat", "window"),
    "product": ("matmul", "matmul", "einsum"),
    "key": ("transpose", "mT", "permute", "swapaxes"),
    "scale": ("none", "mul", "div", "query", "key", "both", "tensor", "after", "in-place"),
    "mask": (
        "none", "causal-fill", "causal-where", "causal-add", "causal-buffer", "window", "padding",
        "padding-fill", "padding-in-place", "both", "bias", "bias-and-padding", "alibi",
        "arbitrary", "keep-bool-float",
    ),
    "side": ("left", "right"),
    "softmax": ("function", "method", "module", "hand", "maximum", "log"),
    "wide": (False, True),
    "dropout": (False, True),
    "group": ("none", "none", "expand", "interleave"),
    "returned": (False, False, False, True),
    "output": ("plain", "turned", "cast"),
}  # fmt: skip
MISSES = (
    "rows", "heads", "reused", "viewed", "summed", "squared", "channel", "router", "pooling",
    "values-other-axis", "renormalised", "no-values", "log-weights", "own-weights",
)  # fmt: skip
"""Near misses: each differs from attention in one thing and must be declined."""


@dataclass(frozen=True)
class Case:
    """One choice of everything in ``CHOICES``; ``miss`` makes it a near miss."""

    sizes: str
    source: str
    layout: str
    product: str
    key: str
    scale: str
    mask: str
    side: str
    softmax: str
    wide: bool
    dropout: bool
    group: str
    returned: bool
    output: str
    miss: str = ""


def draw(pick: random.Random, miss: bool = False) -> Case:
    """A random case that makes sense."""
    case = {key: pick.choice(values) for key, values in CHOICES.items()}
    return settle(case, pick.choice(MISSES) if miss else "")


def settle(given: dict[str, Any], miss: str) -> Case:
    """``given`` with what does not go together put right."""
    if given["source"] in ("inputs", "packed") and given["sizes"] == "one-query":
        given["sizes"] = "distinct"
    if given["source"] == "packed":
        given["group"] = "none"
    if given["layout"] in ("flat", "tokens", "window"):
        given["group"] = "none"
    if given["layout"] == "flat":
        given["product"] = {"einsum": "baddbmm"}.get(given["product"], "bmm")
    if given["layout"] == "tokens":
        given["product"] = "einsum"
    if given["source"] == "inputs" and given["layout"] != "heads":
        given["source"] = "separate"
    if given["group"] != "none" and given["scale"] in ("key", "both"):
        given["scale"] = "query"
    if miss in ("channel", "router", "pooling") and given["source"] == "inputs":
        given["source"] = "separate"
    if miss == "channel" and given["layout"] == "tokens":
        given["layout"] = "heads"
    if given["product"] == "baddbmm":
        given["scale"] = "none"  # alpha is the scale there
    return Case(**given, miss=miss)


class Attention(nn.Module):
    """The model of a case: inputs are ``x`` (or ``q, k, v``), a padding mask, a bias."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        equal = case.sizes == "equal"
        self.b, self.h, self.t, self.d = (4, 4, 4, 4) if equal else (2, 3, 5, 4)
        if case.sizes == "single":
            self.h = 1
        self.g = self.h
        if case.group != "none" and not equal:
            self.h, self.g = 6, 3
        elif case.group != "none":
            self.g = 2
        crossed = case.source == "cross" or (case.sizes == "one-query")
        self.s = 7 if crossed and not equal else self.t
        self.t = 1 if case.sizes == "one-query" else self.t
        self.dv = self.d if equal or case.source == "packed" else 6
        self.w = 3 if case.layout == "window" else 0
        width = 8
        self.q = nn.Linear(width, self.h * self.d)
        self.k = nn.Linear(width, self.g * self.d)
        self.v = nn.Linear(width, self.g * self.dv)
        self.qkv = nn.Linear(width, 3 * self.h * self.d)
        self.soft = nn.Softmax(-1)
        self.register_buffer("below", torch.tril(torch.ones(16, 16, dtype=torch.bool)))
        self.register_buffer("temper", torch.tensor(0.7, dtype=torch.float64))
        self.double().eval()

    def data(self) -> tuple[Tensor, ...]:
        """Inputs of the model, always the same for one case."""
        make = torch.Generator().manual_seed(3)
        normal = lambda *s: torch.randn(*s, generator=make, dtype=torch.float64)  # noqa: E731
        keep = torch.ones(self.b, self.s, dtype=torch.bool)
        keep[-1, self.s - 1 :] = self.s == 1
        extra = (keep, normal(self.h, self.t, self.s), normal(self.t, self.s) > -1.5)
        if self.case.source == "inputs":
            shapes = (
                (self.h, self.t, self.d),
                (self.g, self.s, self.d),
                (self.g, self.s, self.dv),
            )
            return (*(normal(self.b, *s) for s in shapes), *extra)
        lead = (self.b, self.w) if self.w else (self.b,)
        x = normal(*lead, self.t, 8)
        y = normal(*lead, self.s, 8) if self.cross else x
        return (x, y, x, *extra)

    @property
    def cross(self) -> bool:
        return self.case.source == "cross" or self.case.sizes == "one-query"

    def operands(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, (W,) H, T, d]`` and key/value heads before they are repeated."""
        if self.case.source == "inputs":
            return x, y, z
        y = y if self.cross else x
        split = lambda p, n, h: p.unflatten(-1, (h, -1)).transpose(-3, -2)  # noqa: E731
        if self.case.source == "packed" and not self.cross:
            qkv = self.qkv(x).unflatten(-1, (3, self.h, self.d))
            q, k, v = (qkv.select(-3, i).transpose(-3, -2) for i in range(3))
            return q, k, v
        return (
            split(self.q(x), x, self.h),
            split(self.k(y), y, self.g),
            split(self.v(y), y, self.g),
        )

    def repeated(self, x: Tensor) -> Tensor:
        """Key/value heads repeated for grouped queries."""
        n = self.h // self.g
        if self.case.group == "none" or n == 1:
            return x
        if self.case.group == "interleave":
            return x.repeat_interleave(n, 1)
        b, g, s, d = x.shape
        return x[:, :, None].expand(b, g, n, s, d).reshape(b, g * n, s, d)

    def forward(self, x, y, z, keep, bias, pattern):
        q, k, v = self.operands(x, y, z)
        k, v = self.repeated(k), self.repeated(v)
        return spelled(self, q, k, v, keep, bias, pattern)


def spelled(m: Attention, q, k, v, keep, bias, pattern):
    """The attention of ``m.case``, spelled as it says; or a near miss."""
    c, miss = m.case, m.case.miss
    factor = m.d**-0.5
    if miss == "channel":
        n = min(q.shape[-2], k.shape[-2])
        q, k = (x[..., :n, :].transpose(-2, -1) for x in (q, k))
        v = k * 2
    if c.scale == "query":
        q = q * factor
    if c.scale == "key":
        k = k * factor
    if c.scale == "both":
        q, k = q * factor**0.5, k * factor**0.5
    lead = q.shape[:-2]
    if c.layout == "flat":
        q, k, v = (x.flatten(0, -3) for x in (q, k, v))
    s = scores(m, q, k)
    if c.layout == "flat":
        s = s.view(*lead, *s.shape[-2:])
    if c.scale == "mul":
        s = s * factor
    if c.scale == "div":
        s = s / factor**-1
    if c.scale == "in-place":
        s *= factor
    if c.scale == "tensor":
        s = s * m.temper
    if miss != "channel":
        s = masked(m, s, keep, bias, pattern)
    if c.scale == "after":
        s = s * factor
    if c.layout == "flat":
        s = s.flatten(0, -3)
    dtype = s.dtype
    if miss == "viewed":
        s.view(-1)[0].zero_()
        s[..., 0] = q.sum()
    if miss == "router":
        s = F.linear(
            q.flatten(-2), torch.ones(s.shape[-1], q.shape[-2] * q.shape[-1], dtype=dtype)
        )
        s = s.unsqueeze(-2).expand(*s.shape[:-1], q.shape[-2], s.shape[-1])
    if miss == "pooling":
        s = k.sum(-1).unsqueeze(-2).expand(*k.shape[:-2], q.shape[-2], k.shape[-2])
    p = weights(m, s)
    if miss == "summed":
        p = s / s.sum(-1, keepdim=True)
    if miss == "squared":
        p = p * p
    if miss == "renormalised":
        p = p / (p.sum(-2, keepdim=True) + 1e-6)
    if miss == "log-weights":
        p = F.log_softmax(s, -1)
    if c.dropout:
        p = F.dropout(p, 0.1, m.training)
    if c.output == "cast":
        p = p.to(v.dtype)
    if miss == "no-values":
        return p
    if miss == "own-weights":
        return p @ p.transpose(-2, -1)
    if miss == "values-other-axis":
        p = p.transpose(-2, -1)
        n = min(p.shape[-1], v.shape[-2])
        return p[..., :n] @ v[..., :n, :]
    if c.layout == "tokens" and miss == "":
        out = torch.einsum("bhts,bhsd->bthd", p, v)
    elif c.output == "turned":
        out = (v.transpose(-2, -1) @ p.transpose(-2, -1)).transpose(-2, -1)
    else:
        out = torch.bmm(p, v) if p.dim() == 3 else p @ v
    if c.layout == "flat":
        out = out.view(*lead, *out.shape[-2:])
    if miss == "reused":
        return out + p.sum()
    return (out, p) if c.returned and not miss else out


def scores(m: Attention, q: Tensor, k: Tensor) -> Tensor:
    """``q k^T`` in the case's spelling."""
    c, rank = m.case, q.dim()
    if c.miss in ("channel", "router", "pooling") or c.product == "matmul":
        last = [*range(rank - 2), rank - 1, rank - 2]
        turned = {
            "transpose": lambda: k.transpose(-2, -1),
            "mT": lambda: k.mT,
            "permute": lambda: k.permute(last),
            "swapaxes": lambda: k.swapaxes(-1, -2),
        }[c.key]()
        return q @ turned
    if c.product == "bmm":
        return torch.bmm(q, k.transpose(1, 2))
    if c.product == "baddbmm":
        empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype)
        return torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=m.d**-0.5)
    if c.layout == "tokens":
        q, k = q.transpose(-3, -2), k.transpose(-3, -2)
        return torch.einsum("xqhc,xkhc->xhqk", q, k)
    lead = "zyx"[: rank - 2]
    return torch.einsum(f"{lead}ic,{lead}jc->{lead}ij", q, k)


def masked(m: Attention, s: Tensor, keep: Tensor, bias: Tensor, pattern: Tensor) -> Tensor:
    """The case's mask on logits ``[B, (W,) H, T, S]``."""
    c = m.case
    t, n = s.shape[-2:]
    pads = keep.view(keep.shape[0], *([1] * (s.dim() - 2)), -1)
    add = (lambda x: x + s) if c.side == "left" else (lambda x: s + x)
    below = torch.ones(t, n, dtype=torch.bool).tril()
    zero = torch.zeros((), dtype=s.dtype)
    low = torch.finfo(s.dtype).min
    if c.mask == "causal-fill":
        return s.masked_fill(~below, -math.inf)
    if c.mask == "causal-where":
        return torch.where(torch.arange(n) <= torch.arange(t)[:, None], s, low)
    if c.mask == "causal-add":
        return add(torch.full((t, n), -math.inf, dtype=s.dtype).triu(1))
    if c.mask == "causal-buffer":
        return s.masked_fill(m.below[:t, :n] == 0, -math.inf)
    if c.mask == "window":
        i, j = torch.arange(t)[:, None], torch.arange(n)
        return s.masked_fill((j > i) | (j <= i - 2), low)
    if c.mask == "padding":
        return add(torch.where(pads, zero, low))
    if c.mask == "padding-fill":
        return s.masked_fill(pads.logical_not(), -1e9)
    if c.mask == "padding-in-place":
        s.masked_fill_(~pads, -math.inf)
        return s
    if c.mask == "both":
        return s.masked_fill(~(below & pads), low)
    if c.mask == "bias":
        return add(bias)
    if c.mask == "bias-and-padding":
        s = add(bias)
        return s + torch.where(pads, zero, low)
    if c.mask == "alibi":
        slope = torch.arange(1, m.h + 1, dtype=s.dtype).view(-1, 1, 1) / 8
        return add(slope * (torch.arange(n) - n).to(s.dtype))
    if c.mask == "arbitrary":
        return s.masked_fill(pattern.logical_not(), -math.inf)
    if c.mask == "keep-bool-float":
        return add((1.0 - pads.to(s.dtype)) * -1e30)
    return s


def weights(m: Attention, s: Tensor) -> Tensor:
    """Softmax in the case's spelling."""
    dim = {"rows": -2, "heads": 0 if s.dim() == 3 else 1}.get(m.case.miss, -1)
    if m.case.miss in ("rows", "heads"):
        return s.softmax(dim)
    kind = m.case.softmax
    if kind == "module":
        return m.soft(s)
    if kind == "method":
        return s.softmax(-1) if not m.case.wide else s.softmax(dim=-1, dtype=torch.float64)
    if kind == "hand":
        e = torch.exp(s - s.amax(-1, keepdim=True))
        return e / e.sum(-1, keepdim=True)
    if kind == "maximum":
        return F.softmax(s - s.max(-1, keepdim=True).values, -1)
    if kind == "log":
        return F.log_softmax(s, -1).exp()
    return F.softmax(s.to(torch.float64) if m.case.wide else s, dim=s.dim() - 1)


def expected(m: Attention) -> dict[str, Any]:
    """The record that must be found, whatever the spelling."""
    c = m.case
    kinds = set()
    if c.mask in ("causal-fill", "causal-where", "causal-add", "both"):
        kinds = {"causal"} if m.t == m.s else {"arbitrary"}
    if c.mask == "window":
        kinds = {"causal", "window"} if m.t == m.s else {"arbitrary"}
    if c.mask in ("arbitrary", "causal-buffer"):  # for one query, nothing but keys differ
        kinds = {"padding"} if m.t == 1 else {"arbitrary"}
    if "padding" in c.mask or c.mask in ("both", "keep-bool-float"):
        kinds |= {"padding"}
    kind = "self" if c.source in ("separate", "packed") and not m.cross else "cross"
    if m.t == 1:
        kind = "class"
    return {
        "heads": m.h,
        "kv_heads": m.g if c.group != "none" else m.h,
        "head_dim": m.d,
        "value_dim": m.dv if c.source != "packed" or m.cross else m.d,
        "query_len": m.t,
        "key_len": m.s,
        "scale": _scale(m),
        "mask": frozenset(kinds),
        "bias": c.mask in ("bias", "bias-and-padding", "alibi"),
        "kind": kind,
    }  # fmt: skip


def _scale(m: Attention) -> Any:
    """The factor on the logits, up to rounding; None where it is a tensor."""
    import pytest

    c = m.case
    if c.scale == "tensor":
        return None
    one = c.scale in ("query", "key", "both", "none") and c.product != "baddbmm"
    return pytest.approx(1.0 if one else m.d**-0.5, rel=1e-12)


def reference(m: Attention, x, y, z, keep, bias, pattern, h: str) -> Tensor:
    """Attention from the meaning alone: no spelling, one loop of plain operations."""
    c = m.case
    q, k, v = m.operands(x, y, z)
    n = m.h // m.g
    k, v = (a.repeat_interleave(n, -3) for a in (k, v))
    factor = 1.0 if c.scale == "none" and c.product != "baddbmm" else m.d**-0.5
    if c.scale == "tensor":
        factor = float(m.temper)
    s = torch.matmul(q, k.transpose(-2, -1)) * factor
    rows, columns = torch.arange(m.t)[:, None], torch.arange(m.s)
    kept = torch.ones_like(s, dtype=torch.bool)
    pads = keep.view(keep.shape[0], *([1] * (s.dim() - 2)), -1)
    if c.mask.startswith("causal") or c.mask == "both":
        kept = kept & (columns <= rows)
    if c.mask == "window":
        kept = kept & (columns <= rows) & (columns > rows - 2)
    if "padding" in c.mask or c.mask in ("both", "keep-bool-float"):
        kept = kept & pads
    if c.mask == "arbitrary":
        kept = kept & pattern
    after = factor if c.scale == "after" else 1.0
    if c.mask.startswith("bias"):
        s = s + bias * after
    if c.mask == "alibi":
        slope = torch.arange(1, m.h + 1, dtype=s.dtype).view(-1, 1, 1) / 8
        s = s + slope * (columns - m.s).to(s.dtype) * after
    if h == "sigmoid":
        offset = torch.tensor(float(m.s)).log()  # the forms count in float32
        p = torch.sigmoid(s - offset.double()).masked_fill(~kept, 0.0)
    else:
        p = s.masked_fill(~kept, -math.inf).softmax(-1)
    out = p @ v
    return out.transpose(-3, -2) if c.layout == "tokens" else out


def traced(m: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, Any, list[Tensor]]:
    """The normal graph of ``m`` without Dynamo, its matches, and its inputs."""
    values = dict(m.named_parameters()) | dict(m.named_buffers())
    names = list(values)

    def run(*flat: Tensor) -> Any:
        held = dict(zip(names, flat[: len(names)], strict=True))
        return torch.func.functional_call(m, held, flat[len(names) :])

    everything = [*(v.detach() for v in values.values()), *inputs]
    with torch.no_grad():
        gm = tidy(make_fx(run, pre_dispatch=True, tracing_mode="fake")(*everything))
    holders = gm.graph.find_nodes(op="placeholder")
    return gm, match(gm.graph, set(holders[: len(names)])), everything


def check(case: Case, dynamo: bool = False) -> str:
    """``""`` if the case holds, else what is wrong."""
    torch.manual_seed(0)
    model = Attention(case)
    inputs = model.data()
    clone = lambda: tuple(x.clone() for x in inputs)  # noqa: E731
    with torch.no_grad():
        want = first(model(*clone()))
        if dynamo:
            torch._dynamo.reset()
            capture = attnpass.Capture(model)
            capture(*clone())
            sites, declined = capture.sites, capture.declined

            def under(form: str) -> Tensor:
                capture.use_modules(modules(sites, form))
                return first(capture(*clone()))
        else:
            gm, found, everything = traced(model, clone())
            sites, declined = [r.site for r in found.regions], found.declined
            held = everything[: len(everything) - len(inputs)]
            verdicts, nodes = len(sites) + len(declined), len(anchors(gm.graph))
            if verdicts != nodes:
                return f"{verdicts} verdicts on {nodes} softmax nodes"

            def under(form: str) -> Tensor:
                chosen = modules(sites, form)
                run = rewrite(gm, found.regions, chosen) if chosen else gm
                return first(run(*held, *clone()))

        if case.miss:
            if sites and case.miss == "reused":
                return "" if sites[0].legal["sigmoid"] else "read weights may be exchanged"
            if sites:
                return f"near miss {case.miss} taken for attention: {sites[0]}"
            return "" if same(under("sigmoid"), want) else "a declined graph changed"
        if len(sites) != 1 or declined:
            return f"{len(sites)} sites, declined {[(d.code, d.hint, d.node) for d in declined]}"
        site = sites[0]
        for key, value in expected(model).items():
            if getattr(site, key) != value:
                return f"{key}: expected {value}, got {getattr(site, key)}"
        if not same(want, reference(model, *inputs, "softmax")):
            return "the case itself is not what the reference computes"
        if not same(under("softmax"), want):
            return "the round trip differs"
        if site.legal["sigmoid"] is None:
            if not same(under("sigmoid"), reference(model, *inputs, "sigmoid")):
                return "sigmoid differs from the reference"
        elif not case.returned:
            return f"sigmoid is illegal: {site.legal['sigmoid']}"
    return ""


def modules(sites: Any, form: str) -> dict[str, nn.Module]:
    """The form at every site where it is legal; sigmoid with the offset -log S alone."""
    options = {"L": "keys"} if form == "sigmoid" else {}
    return {
        s.name: forms.build(form, s, options, trainable=False)
        for s in sites
        if s.legal[form] is None
    }


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding; not a number in the same places."""
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    a, b = a.nan_to_num(), b.nan_to_num()
    return float((a - b).abs().max()) <= BOUND * max(1.0, float(b.abs().max()))


def many(seed: int, count: int, every: int = 25) -> dict[str, Any]:
    """``count`` random cases, a quarter near misses; every ``every``-th through Dynamo too."""
    torch.set_num_threads(1)
    pick = random.Random(seed)
    tally: collections.Counter[str] = collections.Counter()
    wrong = []
    for i in range(count):
        case = draw(pick, miss=i % 4 == 3)
        for dynamo in (False, True) if i % every == 0 else (False,):
            try:
                problem = check(case, dynamo)
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            tally["near misses" if case.miss else "attention"] += 1
            tally["through Dynamo"] += dynamo
            if problem:
                wrong.append((problem, dynamo, repr(case)))
    return {"tally": dict(tally), "wrong": wrong}


def main() -> int:
    """Run many cases in two processes and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    began = time.perf_counter()
    parts = [given.seed * 1000 + i for i in range(20)]
    tally: collections.Counter[str] = collections.Counter()
    wrong: list[Any] = []
    with ProcessPoolExecutor(2) as pool:
        for part in pool.map(many, parts, [given.graphs // len(parts)] * len(parts)):
            tally.update(part["tally"])
            wrong += part["wrong"]
            print(dict(tally), len(wrong), "wrong", flush=True)
    for problem, dynamo, case in wrong[:20]:
        print(problem, "through Dynamo" if dynamo else "", case, sep="\n  ")
    result = {
        "command": f"make fuzz (seed {given.seed})",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "graphs": sum(v for k, v in tally.items() if k != "through Dynamo"),
        **tally,
        "wrong": len(wrong),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(result))
    if given.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
