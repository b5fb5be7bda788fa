"""The programs of single graphs, and sigmoid attention by hand for each.

Shapes: B batch, H heads, n tokens, d head dim.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEADS, WIDTH, BATCH = 2, 4, 3

WRITES = ("none", "none", "none", "none", "keep", "query", "value", "logits", "mask")


@dataclass(frozen=True)
class Graph:
    """One graph.

    ``fills``: of the mask and of the padding; ``added``: they are added.

    ``fused``: the form runs as one operator, as it does where sizes are not known.
    """

    text: str
    padding: bool
    fills: tuple[float, float]
    added: tuple[bool, bool]
    bias: bool
    batches: tuple[int, int, int]
    writes: str
    check: bool
    fused: bool


def text_of(pick: random.Random) -> str:
    """A formula of rows ``i``, columns ``j`` and their number ``n``, mostly close to causal."""
    number = lambda: pick.choice((0, 1, 1, 2, 3, 5, 8, 12, 30, 127))  # noqa: E731
    ordered = pick.choice(("(j <= i)", "(i >= j)", "(i - j >= 0)", "~(j > i)", "(i + 1 > j)"))
    other = pick.choice(
        (
            f"(i - j < {number()})",
            f"(i - j < min(n, {number()}))",
            f"(j < {number()})",
            f"(i // {number() + 1} == j // {number() + 1})",
            f"(j != {number()})",
            f"((i - j).abs() <= {number()})",
            "(j < n)",
            f"(i * 2 < n + {number()})",
            f"(j >= n - {number()})",
        )
    )
    kind = pick.random()
    if kind < 0.25:
        return ordered
    if kind < 0.9:
        return f"({ordered} {pick.choice('&&|')} {other})"
    return f"({other} | (i == j))"


def draw(pick: random.Random) -> Graph:
    """A random graph."""
    one = pick.choice((-math.inf, -1e9))
    other = pick.choice((one, one, -1e4, -1e9))
    return Graph(
        text_of(pick) if pick.random() < 0.85 else "",
        pick.random() < 0.5,
        (one, other),
        (pick.random() < 0.3, pick.random() < 0.4),
        pick.random() < 0.2,
        pick.choice(((3, 3, 3), (3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 3, 1), (3, 3, 1))),
        pick.choice(WRITES),
        pick.random() < 0.2,
        pick.random() < 0.6,
    )


def mask_of(text: str, n: Any, least: Callable[..., Any]) -> Tensor:
    """The mask ``[n, n]`` of a formula."""
    i, j = torch.arange(n)[:, None], torch.arange(n)
    out: Tensor = eval(text, {"n": n, "i": i, "j": j, "min": least}) & (i >= 0) & (j >= 0)
    return out


def program(g: Graph) -> Callable[..., Any]:
    """The attention of a graph, spelled out."""

    def run(q: Tensor, k: Tensor, v: Tensor, pads: Tensor, bias: Tensor) -> Tensor:
        n = k.shape[2]
        if g.check:
            torch._assert_async(q.abs().amax() < 1e3, "expected small inputs")
        if g.writes in ("query", "value"):
            q, v = q * 1.0, v * 1.0
        x = q @ k.transpose(-2, -1) * 0.5
        if g.writes == "query":
            q.mul_(3.0)
        if g.writes == "logits":
            x[..., 0].mul_(0.5)
        if g.text:
            x = _fill(x, mask_of(g.text, n, torch.sym_min), g.fills[0], g.added[0])
        if g.bias:
            x = x + bias[..., :n]
        if g.padding:
            keep = pads[:, None, None]
            if g.writes == "mask":
                keep = keep.clone()
            x = _fill(x, keep, g.fills[1], g.added[1])
            if g.writes == "keep":
                pads.logical_not_()
            if g.writes == "mask":
                keep.logical_not_()
        out = x.softmax(-1) @ v
        if g.writes == "value":
            v.add_(1.0)
            out = out + v.sum() * 0
        return out + (q.sum() if g.writes == "query" else 0)

    return run


def _fill(x: Tensor, keep: Tensor, fill: float, added: bool) -> Tensor:
    if added:
        return x + torch.zeros_like(keep, dtype=x.dtype).masked_fill(~keep, fill)
    return x.masked_fill(~keep, fill)


def sigmoid(
    g: Graph, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, bias: Tensor, *, swapped: bool
) -> Tensor:
    """Sigmoid attention with b = -log S, by hand; kernels hold log S in float32.

    ``swapped``: the softmax alone was exchanged, in the dtype of its logits.
    """
    n = k.shape[2]
    factor = torch.ones(n, dtype=q.dtype)
    factor[0] = 0.5 if g.writes == "logits" else 1.0
    x = torch.einsum("bhtd,bhsd->bhts", q.expand(BATCH, -1, -1, -1), k.expand(BATCH, -1, -1, -1))
    x = x * 0.5 * factor + (bias[..., :n] if g.bias else 0)
    keep = torch.ones(n, n, dtype=torch.bool)
    if g.text:
        keep = mask_of(g.text, n, min)
    kept = keep[None, None] & (pads[:, None, None] if g.padding else torch.tensor(True))
    log = torch.tensor(float(n), dtype=q.dtype if swapped else torch.float32).log()
    p = torch.sigmoid(x - float(log)) * kept
    out = p @ v
    return out + ((q * 3.0).sum() if g.writes == "query" else 0)


def data(g: Graph, n: int) -> list[Tensor]:
    """Inputs for ``n`` tokens: queries, keys, values, kept keys, bias."""
    make = torch.Generator().manual_seed(n)
    normal = lambda *s: torch.randn(*s, generator=make, dtype=torch.float64)  # noqa: E731
    tokens = [normal(b, HEADS, n, WIDTH) for b in g.batches]
    pads = torch.rand(BATCH, n, generator=make) < 0.6
    pads[0], pads[1, 0] = True, False
    return [*tokens, pads, normal(HEADS, 1, n)]
