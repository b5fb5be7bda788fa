"""Single graphs of symbolic size: what is claimed of one size must hold at every other.

A graph is attention by hand in float64 whose mask is a random formula of positions and sizes,
whose paddings may leave rows without a key, whose operands may broadcast, and whose tensors may be
written after they were used. The graph is run under softmax and under sigmoid, at several sizes.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from attnpass import forms
from attnpass.forms import Pointwise
from attnpass.graph.normal_form import tidy
from attnpass.kernels.select import default_tile
from attnpass.matching.verdicts import match
from attnpass.rewrite.rewriter import rewrite
from random_use.programs import WIDTH, Graph, data, draw, program, sigmoid

SIZES = (2, 3, 4, 6, 9, 19, 33, 128, 140)

TRACED = 9
"""Tokens of the trace; every other number of them must give the same function."""

BOUND = 1e-9


def traced(g: Graph) -> tuple[fx.GraphModule, Any, list[Any]]:
    """The normal graph with a symbolic number of tokens, its guards, its inputs."""
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    fakes = []
    for x in data(g, TRACED):
        sizes = [DimDynamic.DYNAMIC if n == TRACED else DimDynamic.STATIC for n in x.shape]
        fakes.append(
            mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
        )
    with mode, torch.no_grad():
        gm = make_fx(program(g), pre_dispatch=True, tracing_mode="real")(*fakes)
        return tidy(gm), env, fakes


def check(seed: int, loud: bool = False) -> str:
    """``attention: ..``, ``declined: ..``, or ``wrong: ..``."""
    g = draw(random.Random(seed))
    gm, env, fakes = traced(g)
    found = match(gm.graph, set())
    if loud:
        print(g, gm.graph, found, sep="\n")
    if not found.regions:
        (why,) = found.declined
        return f"declined: {why.code}"
    (region,) = found.regions
    site, verdict = region.site, "softmax alone"
    for form, options in (("softmax", {}), ("sigmoid", {"L": "keys"})):
        if site.legal[form] is not None:
            continue
        verdict = form
        module = forms.build(form, site, options, trainable=False)
        if g.fused and isinstance(module, Pointwise):
            module.tile = default_tile("cpu", WIDTH)
        run = rewrite(gm, [region], {site.name: module})
        for n in SIZES:
            if not env.evaluate_guards_for_args(fakes, data(g, n), ignore_static=False):
                continue
            given, held = data(g, n), data(g, n)
            got = run(*given)
            if form == "softmax":
                want = program(g)(*held)
            else:
                want = sigmoid(g, *data(g, n), swapped=site.swapped)
            # under sigmoid, what is masked is 0 whatever is added to it
            if not _same(got, want, bound_of(g) if form == "softmax" else BOUND):
                return f"wrong: {form} at {n} tokens: {g}"
            if form == "softmax" and not all(map(_same, given, held)):
                return f"wrong: an input was written otherwise: {g}"
    if g.check and not _fails(gm, g):
        return f"wrong: the check is gone: {g}"
    return f"attention: {verdict}"


def _fails(run: Any, g: Graph) -> bool:
    """Whether the program's own check fails where it must."""
    q, *rest = data(g, TRACED)
    try:
        run(q * 1e6, *rest)
    except RuntimeError as error:
        return "expected small inputs" in str(error)
    return False


def bound_of(g: Graph) -> float:
    """The largest relative difference: what adding a large number to the logits rounds away."""
    added = [abs(fill) for fill, added in zip(g.fills, g.added, strict=True) if added]
    return max([BOUND, *(4 * torch.finfo(torch.float64).eps * x for x in added if x < 1e12)])


def _same(a: Tensor, b: Tensor, bound: float = BOUND) -> bool:
    """Equal to rounding; not a number in the same places."""
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    a, b = a.nan_to_num().double(), b.nan_to_num().double()
    return float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))
