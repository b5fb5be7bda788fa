"""Conditions that lower a claim instead of refusing it: without one, the claim is wrong.

A mutation names the line of the source that checks the condition, and the line without the check.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from models import INF, scores_of, weighted
from provers import Core, mutated, numbered
from torch import nn

import attnpass
from attnpass import forms


def low(q):
    return torch.finfo(q.dtype).min


class Masked(Core):
    """The same with tables, and a mask of padding made of the input."""

    def __init__(self, core):
        super().__init__(core)
        self.register_buffer("row", torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, 0.0]))

    def forward(self, x):
        self.keep = x[..., 0] > -0.5  # [B, T]
        self.plane_keep = (x[:, :, None, 0] + x[:, None, :, 1]) > -1.0  # [B, T, T]
        self.keep[:, 0] = True
        return super().forward(x)


def small_fill(q, k, v, m, mod):
    return weighted(scores_of(q, k).masked_fill(~mod.keep[:, None, None], -3.0), v)


def other_number(q, k, v, m, mod):
    mask = torch.where(mod.keep[:, None, None], 2.0, low(q))
    return weighted(scores_of(q, k) + mask, v)


def doubled_bias(q, k, v, m, mod):
    mask = torch.zeros_like(mod.row).masked_fill(mod.row == 9.0, INF)
    return weighted(scores_of(q, k) + torch.add(mask, mod.row, alpha=4.0), v)


def mask_of_rows(q, k, v, m, mod):
    return weighted(scores_of(q, k).masked_fill(~mod.plane_keep[:, None], low(q)), v)


def random_mask(q, k, v, m, mod):
    keep = torch.rand(6, 6) < 0.9999999
    return weighted(scores_of(q, k).masked_fill(~keep, low(q)), v)


def mask_by_head(q, k, v, m, mod):
    """Causal in the first head alone."""
    whole = torch.ones(6, 6)
    keep = torch.stack([whole.tril(), whole, whole, whole]).bool()
    return weighted(scores_of(q, k).masked_fill(~keep, low(q)), v)


def fewer_queries(q, k, v, m, mod):
    lower = torch.ones(4, 6, dtype=torch.bool).tril()
    out = weighted(scores_of(q[:, :, :4], k).masked_fill(~lower, low(q)), v)
    return nn.functional.pad(out, (0, 0, 0, 2))


def wide_window(q, k, v, m, mod):
    t = torch.arange(q.shape[2])
    keep = (t[None] <= t[:, None]) & (t[None] > t[:, None] - 50)
    return weighted(scores_of(q, k).masked_fill(~keep, low(q)), v)


def row_and_padding(q, k, v, m, mod):
    pad = torch.zeros(mod.keep.shape).masked_fill(~mod.keep, low(q))
    return weighted(scores_of(q, k) + (mod.row + pad)[:, None, None], v)


def regrouped_sum(q, k, v, m, mod):
    B, H, T, S = scores_of(q, k).shape
    pad = torch.zeros(B, 1, 1, S).masked_fill(~mod.keep[:, None, None], low(q))
    mask = (pad + mod.plane * mod.temperature).reshape(B * H, T, S)
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)) + mask
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(B, H, T, -1)


def cast_mask(q, k, v, m, mod):
    pad = torch.zeros(mod.keep.shape).masked_fill(~mod.keep, -1e9).double().float()
    return weighted(scores_of(q, k) + pad[:, None, None], v)


EQUAL = "torch.equal(plane, torch"
NEVER = "False and rank != value("
ALWAYS = "True or self._keeps_rows"

MUTATIONS = {
    "masks 1": (small_fill, "masks", "found is not None and found <= FILL", "found is not None"),
    "masks 2": (
        other_number,
        "masks",
        "fill is None or not (constant(other) == 0 or _is_float(other))",
        "fill is None",
    ),
    "masks 3": (doubled_bias, "masks", "len(node.all_input_nodes) != 2 or node.kwargs", "False"),
    "masks 4": (mask_of_rows, "masks", "expression(shape[-2]) != 1", "False"),
    "masks 5": (wide_window, "patterns", "symbols and large_constant(nodes)", "False"),
    "patterns 1": (random_mask, "constants", "return seeded or any(", "return False and any("),
    "patterns 2": (mask_by_head, "patterns", "not bool((planes == plane).all())", "False"),
    "patterns 3": (fewer_queries, "patterns", "t == s and torch.equal(plane, torch", EQUAL),
    "patterns 4": (wide_window, "patterns", "symbols and large_constant(nodes)", "False"),
    "recipe 1": (row_and_padding, "recipe", "rank is not None and rank != value(", NEVER),
    "recipe 2": (regrouped_sum, "recipe", "not self.regroups or self._keeps_rows", ALWAYS),
    "recipe 3": (cast_mask, "recipe", "not (isinstance(step, Cast) and is_bool)", "True"),
}
"""Condition -> a program, the module, the text that checks it, the text without the check."""


def claim(core) -> tuple:
    """The record of a program's attention, and whether softmax made of it equals eager."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Masked(core).eval(), torch.randn(2, 6, 24)
    with torch.no_grad():
        want = model(x)
        capture = attnpass.Capture(model, dynamic=core is wide_window or None).trace(x)
        modules = {s.name: forms.build("softmax", s) for s in capture.sites}
        capture.use_modules(modules)
        same = torch.allclose(capture(x), want, atol=1e-5)
    records = [(sorted(s.mask), s.bias, s.fill) for s in capture.sites]
    return records, [d.condition for d in capture.declined], same


@pytest.mark.parametrize("condition", MUTATIONS)
def test_without_the_condition_the_claim_is_another_or_wrong(condition):
    core, module, old, new = MUTATIONS[condition]
    claimed = claim(core)
    assert claimed[-1], "with the condition softmax equals eager"
    with mutated(f"matching.{module}", old, new):
        try:
            without = claim(core)
        except (RuntimeError, TypeError):
            return
    assert without != claimed


@pytest.mark.parametrize("name", ["masks", "patterns", "recipe"])
def test_every_condition_is_numbered_and_has_a_case(name):
    stated = numbered(importlib.import_module(f"attnpass.matching.{name}").__doc__)
    assert stated == list(range(1, len(stated) + 1))
    assert {c for c in MUTATIONS if c.split()[0] == name} == {f"{name} {n}" for n in stated}
