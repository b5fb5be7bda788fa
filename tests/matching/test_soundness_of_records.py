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
from attnpass.graph import aliasing
from attnpass.torch_internals import make_fx


def low(q):
    return torch.finfo(q.dtype).min


class Masked(Core):
    """The same with tables, and a mask of padding made of the input."""

    def __init__(self, core):
        super().__init__(core)
        self.width_vector = nn.Parameter(torch.ones(6))
        self.positions = nn.Parameter(torch.ones(6, 6))
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


def two_fills(q, k, v, m, mod):
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, :3] = True
    scores = scores_of(q, k).masked_fill(later, low(q)).masked_fill(padding[:, None, None], -5e4)
    return weighted(scores, v)


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


def vector_scores(q, k, v, m, mod):
    return (k @ mod.width_vector).softmax(-1).unsqueeze(-2).expand(-1, -1, 6, -1) @ v


def half_bias(q, k, v, m, mod):
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    bias = mod.plane.expand(q.shape[0], 6, 6)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0.5)
    return (scores.softmax(-1) @ v).unflatten(0, (2, -1))


def diagonal_weights(q, k, v, m, mod):
    return torch.einsum("bhtt,bhtd->bhtd", scores_of(q, k).softmax(-1), v)


def heads_in_front(q, k, v, m, mod):
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # [H, B, T, d]
    return weighted(scores_of(q, k), v).transpose(0, 1)


def tiled_heads(q, k, v, m, mod):
    """Two heads, one after the other and again: not each of them twice."""

    def tiled(x):
        return x[:, :2].unsqueeze(1).expand(-1, 2, -1, -1, -1).reshape(q.shape)

    return weighted(scores_of(q, tiled(k)), tiled(v))


def regrouped_tokens(q, k, v, m, mod):
    k = k.transpose(1, 2).reshape(2, 9, 16).reshape(2, 6, 4, 6).transpose(1, 2)
    return weighted(scores_of(q, k), v)


def other_half(q, k, v, m, mod):
    out = weighted(scores_of(q[:, :, :3], k[:, :, 3:]), v[:, :, 3:])
    return torch.cat([out, out], 2)


def running_products(q, k, v, m, mod):
    return weighted(scores_of(q.cumprod(2), k), v)


def positions_first(q, k, v, m, mod):
    return weighted(scores_of(mod.positions + q, k), v)


def piece_written(q, k, v, m, mod):
    """A piece of the queries is written behind their product, through a list of pieces."""
    q = q * 1.0
    pieces = q.split(3, dim=2)
    scores = scores_of(q, k)
    pieces[0].add_(mod.plane[:3, :6].double())
    return weighted(scores, v)


EQUAL = "torch.equal(plane, torch"
NEVER = "False and rank != value("
ALWAYS = "True or self._keeps_rows"
FIRST = "(fitting or [new])[0]"

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
    "masks 5": (wide_window, "patterns", "impossible(both(inside, wrong))", "True"),
    "masks 6": (
        two_fills,
        "logits",
        "self.mixed_fills |= added or self.fill != mask.fill",
        "pass",
    ),
    "patterns 1": (random_mask, "constants", "return seeded or any(", "return False and any("),
    "patterns 2": (mask_by_head, "patterns", "not bool((planes == plane).all())", "False"),
    "patterns 3": (fewer_queries, "patterns", "t == s and torch.equal(plane, torch", EQUAL),
    "patterns 4": (wide_window, "patterns", "impossible(both(inside, wrong))", "True"),
    "products 1": (vector_scores, "products", "min(ranks) < 2", "False"),
    "products 2": (half_bias, "products", "beta not in (0, 1)", "False"),
    "products 3": (
        diagonal_weights,
        "products",
        "any(len(set(x)) != len(x) for x in (a_letters, b_letters, out))",
        "False",
    ),
    "layout 1": (heads_in_front, "layout", "made[-1] if made else count - 1", "count - 1"),
    "layout 3": (tiled_heads, "layout", "lifted.args[1] not in (2, -3)", "False"),
    "axes 1": (regrouped_tokens, "factors", "if inner is None:", "if False:"),
    "axes 2": (other_half, "axis_rules", "(source[dim], str(what))", "source[dim]"),
    "axes 3": (running_products, "axes", "plain = name in SAME_SHAPE", "plain = True"),
    "axes 4": (positions_first, "axes", "min(fitting, key=rank_of, default=new)", FIRST),
    "aliasing 1": (piece_written, "../graph/aliasing", "found is None or any(", "found and any("),
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
    records = [(sorted(s.mask), s.bias, s.fill, s.heads, s.kind) for s in capture.sites]
    return records, [d.condition for d in capture.declined], same


def place(module: str) -> str:
    """The dotted name of a prover."""
    return module.replace("../graph/", "graph.") if "/" in module else f"matching.{module}"


@pytest.mark.parametrize("condition", MUTATIONS)
def test_without_the_condition_the_claim_is_another_or_wrong(condition):
    core, module, old, new = MUTATIONS[condition]
    claimed = claim(core)
    assert claimed[-1], "with the condition softmax equals eager"
    with mutated(place(module), old, new):
        try:
            without = claim(core)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return
    assert without != claimed


def transposed_without_gradients(q, k, v, m, mod):
    with torch.no_grad():
        turned = k.transpose(-2, -1)
    return (q @ turned).softmax(-1) @ v


def key_gradient() -> float:
    """How much of a gradient reaches the keys' projection through the softmax form."""
    torch._dynamo.reset()
    model, x = Masked(transposed_without_gradients).train(), torch.randn(2, 6, 24)
    capture = attnpass.Capture(model).trace(x)
    capture.use_modules({s.name: forms.build("softmax", s) for s in capture.sites})
    capture(x).sum().backward()
    return 0.0 if model.k.weight.grad is None else float(model.k.weight.grad.norm())


def test_layout_2_a_transpose_without_gradients_stays():
    assert key_gradient() == 0.0
    with mutated("matching.layout", "if switched(node, until):", "if False:"):
        assert key_gradient() > 0.0


def test_aliasing_2_hidden_storage_leaves_the_word_to_the_schema(monkeypatch):
    def hidden(node):
        raise NotImplementedError("a batched tensor")

    gm = make_fx(lambda x: (x[0], x + 1), torch.ones(2, 2))
    view, added = (n for n in gm.graph.nodes if n.op == "call_function")
    (x,) = gm.graph.find_nodes(op="placeholder")
    monkeypatch.setattr(aliasing, "_storages", hidden)
    assert aliasing.shares(view, x) and not aliasing.shares(added, x)


@pytest.mark.parametrize("mutates", [True, False])
def test_aliasing_3_a_piece_that_writes_writes_all_it_is_given(mutates):
    class Piece:
        """A folded piece."""

        __name__ = "piece"

        def __init__(self):
            self.mutates = mutates

        def __call__(self, *args):
            return args

    graph = torch.fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.call_function(Piece(), (x,))
    graph.output(y)
    found = aliasing.written(graph)
    assert (x in found) == mutates and y not in found


ELSEWHERE = {"layout 2", "aliasing 2", "aliasing 3"}
"""Conditions with tests of their own."""


@pytest.mark.parametrize(
    "name", ["masks", "patterns", "recipe", "products", "layout", "axes", "../graph/aliasing"]
)
def test_every_condition_is_numbered_and_has_a_case(name):
    short = name.split("/")[-1]
    stated = numbered(importlib.import_module(f"attnpass.{place(name)}").__doc__)
    assert stated == list(range(1, len(stated) + 1))
    cases = {c for c in (*MUTATIONS, *ELSEWHERE) if c.split()[0] == short}
    assert cases == {f"{short} {n}" for n in stated}
