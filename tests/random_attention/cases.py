"""A random attention as a record: its meaning and its spelling, and near misses.

The meaning (sizes, mask, scale) fixes the site that must be found; the spelling (contraction,
layout, casts, ...) must not matter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

CHOICES: dict[str, tuple[Any, ...]] = {
    "sizes": ("distinct", "equal", "one-query", "single"),
    "source": ("inputs", "separate", "packed", "cross"),
    "layout": ("heads", "heads", "tokens", "flat", "window"),
    "product": ("matmul", "matmul", "einsum", "linalg", "vecdot"),
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
    "rows", "heads", "reused", "summed", "squared", "channel", "router", "pooling",
    "values-other-axis", "renormalised", "no-values", "log-weights", "own-weights",
)  # fmt: skip
"""Near misses: each differs from attention in one thing and must be declined."""

LOOSE = (
    "viewed", "indexed", "clamped", "numbers", "top", "second-product", "stretched", "joined",
    "gated", "clipped", "cleared", "two-values",
)  # fmt: skip
"""Attention with one step that no reader knows, between the products: its softmax is known."""


@dataclass(frozen=True)
class Case:
    """One choice of everything in ``CHOICES``; ``miss``: a near miss; ``loose``: one step more."""

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
    loose: str = ""


def draw(pick: random.Random, what: str = "attention") -> Case:
    """A random case that makes sense: ``"attention"``, ``"miss"`` or ``"loose"``."""
    case = {key: pick.choice(values) for key, values in CHOICES.items()}
    if what == "loose":
        return settle(case, loose=pick.choice(LOOSE))
    return settle(case, pick.choice(MISSES) if what == "miss" else "")


def settle(given: dict[str, Any], miss: str = "", loose: str = "") -> Case:
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
    if loose:
        given["returned"] = False
        if given["softmax"] not in ("function", "method", "module"):
            given["softmax"] = "function"  # what the reference exchanges
    if loose in ("joined", "two-values"):
        given["layout"] = {"tokens": "heads"}.get(given["layout"], given["layout"])
    return Case(**given, miss=miss, loose=loose)
