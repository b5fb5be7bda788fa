"""Random spellings of attention, and of what only looks like it, against an independent reference.

    python fuzz.py --graphs 10000 --seed 1    many graphs, in two processes; prints a summary

A case is a meaning (sizes, mask, scale) and a spelling (contraction, layout, casts, ...). The
meaning fixes the record that must be found and what softmax and sigmoid attention must give. Where
a step between the products is known to no reader, the softmax must be found, and the reference is
the model itself with another function in the place of every softmax.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from exchanged import exchanged
from random_attention.cases import Case, draw
from random_attention.reference import expected, reference
from random_attention.spelling import Attention
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import attnpass
from attnpass import forms
from attnpass.graph.composed import COMPOSED
from attnpass.graph.normal_form import tidy
from attnpass.matching.verdicts import anchors, match
from attnpass.rewrite.rewriter import rewrite

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "fuzz_cpu.json"

BOUND = 1e-10
"""Largest relative difference in float64."""


def traced(m: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, Any, list[Tensor]]:
    """The normal graph of ``m`` without Dynamo, its matches, and its inputs."""
    values = dict(m.named_parameters()) | dict(m.named_buffers())
    names = list(values)

    def run(*flat: Tensor) -> Any:
        held = dict(zip(names, flat[: len(names)], strict=True))
        return torch.func.functional_call(m, held, flat[len(names) :])

    everything = [*(v.detach() for v in values.values()), *inputs]
    with torch.no_grad():
        trace = make_fx(run, decomposition_table=COMPOSED, pre_dispatch=True, tracing_mode="fake")
        gm = tidy(trace(*everything))
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
                capture.use_modules(modules(sites, form, case.loose))
                return first(capture(*clone()))
        else:
            gm, found, everything = traced(model, clone())
            sites, declined = [r.site for r in found.regions], found.declined
            held = everything[: len(everything) - len(inputs)]
            verdicts, nodes = len(sites) + len(declined), len(anchors(gm.graph))
            if verdicts != nodes:
                return f"{verdicts} verdicts on {nodes} softmax nodes"

            def under(form: str) -> Tensor:
                chosen = modules(sites, form, case.loose)
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
        if case.loose:
            for form in ("softmax", "sigmoid", "relu"):
                if site.legal[form] is not None:
                    return f"{form} is illegal: {site.legal[form]}"
                right = want if form == "softmax" else first(exchanged(model, form, *clone()))
                # a form of its own, of which more is known, holds log n in float32
                exact = form == "softmax" or site.degree == "logits"
                if not same(under(form), right, BOUND if exact else 1e-6):
                    return f"{form} differs from the model with its softmax exchanged"
            return ""
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


def modules(sites: Any, form: str, loose: str = "") -> dict[str, nn.Module]:
    """The form at every site where it is legal; sigmoid with the offset -log S if not loose."""
    options = {"L": "keys"} if form == "sigmoid" and not loose else {}
    return {
        s.name: forms.build(form, s, options, trainable=False)
        for s in sites
        if s.legal[form] is None
    }


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def same(a: Tensor, b: Tensor, bound: float = BOUND) -> bool:
    """Equal to rounding; not a number in the same places."""
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    a, b = a.nan_to_num(), b.nan_to_num()
    return float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


def many(seed: int, count: int, every: int = 25) -> dict[str, Any]:
    """``count`` random cases, a quarter each loose and near misses; every ``every``-th also
    through Dynamo.
    """
    torch.set_num_threads(1)
    pick = random.Random(seed)
    tally: collections.Counter[str] = collections.Counter()
    wrong = []
    for i in range(count):
        case = draw(pick, ("attention", "attention", "loose", "miss")[i % 4])
        for dynamo in (False, True) if i % every == 0 else (False,):
            try:
                problem = check(case, dynamo)
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            kind = "near misses" if case.miss else "loose" if case.loose else "attention"
            tally[kind] += 1
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
