"""Graphs in segments: the same values and gradients, with borders where little is in use."""

from __future__ import annotations

import torch
from compiling import build, data
from models import dropped
from torch import fx, nn

import attnpass
from attnpass.capture import watched
from attnpass.capture.segments import Segments


def test_segments_cover_the_graph_and_cut_it_where_one_value_is_in_use():
    class Stack(nn.Module):
        def forward(self, x):
            for _ in range(9):
                x = (x.sin() + x.cos()).relu() + x.tanh()
            return x

    gm = fx.symbolic_trace(Stack())
    made = Segments(gm, [])
    nodes = [n for segment in made.segments for n in segment.nodes]
    assert nodes == list(gm.graph.nodes)[1:-1] and len(made.segments) > 3
    assert all(len(segment.reads) == 1 for segment in made.segments)
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    out, seen = made.run(x)
    assert torch.equal(out, gm(x)) and seen == {}
    (got,), (want,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(gm(x).sum(), x)
    assert torch.equal(got, want)


def test_values_that_are_wanted_are_seen_and_dropout_repeats():
    model, x = build(2, core=dropped).train(), data()
    capture = attnpass.Capture(model).trace(x)
    weights = list(model.parameters())

    def wanted(graph, layer):
        return [r.block_out.name for r in layer.regions]

    runs = []
    for recomputed in (False, True):
        torch.manual_seed(3)
        out, ran = watched(capture, (x,), wanted, recomputed=recomputed)
        ((_, layer, seen),) = ran
        total = out.square().sum() + sum(v.square().sum() for v in seen.values())
        runs.append((out, seen, torch.autograd.grad(total, weights, allow_unused=True)))
    (out, seen, grads), (out2, seen2, grads2) = runs
    assert torch.equal(out, out2) and seen.keys() == seen2.keys() and len(seen) == 2
    assert all(torch.equal(seen[k], seen2[k]) for k in seen)
    assert any(g is not None for g in grads)
    for a, b in zip(grads, grads2, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
