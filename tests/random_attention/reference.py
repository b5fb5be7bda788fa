"""The site and the numbers that a random case must give, computed from its meaning alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from random_attention.spelling import Attention


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
