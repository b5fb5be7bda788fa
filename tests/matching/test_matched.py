"""A matched graph: where its weights are, and by what a layer is known."""

from __future__ import annotations

import pytest
import torch
from models import Stack

import attnpass
from attnpass.matching import MatchedGraph
from attnpass.site import Decline


@pytest.fixture
def met():
    model, x = Stack(2).eval(), torch.randn(2, 5, 24)
    seen = []

    def backend(gm, inputs):
        seen.append((MatchedGraph.of(gm, inputs), list(inputs), gm))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return model, *seen[0]


def test_positions_lead_to_the_parameters_of_each_region(met):
    model, graph, inputs, _ = met
    names = {id(p): n for n, p in model.named_parameters()}
    found = [{names[id(p)] for p in own} for own in graph.parameters(inputs)]
    for i, own in enumerate(found):
        assert own and all(n.startswith(f"blocks.{i}.attn.") for n in own)
        output = {names[id(inputs[at])] for at in graph.outputs[i]}
        assert output == {f"blocks.{i}.attn.o.weight", f"blocks.{i}.attn.o.bias"}
    flat = [i for at in graph.projections for i in at]
    assert graph.identity == sorted(set(flat))
    assert [graph.paths[i] for i in flat] == [names[id(inputs[i])] for i in flat]


def test_the_prefix_is_where_the_graph_stands_in_a_larger_model(met):
    model, graph, inputs, _ = met
    known = {id(p): f"encoder.tower.{n}" for n, p in model.named_parameters()}
    assert graph.prefix(inputs, known) == "encoder.tower"
    assert graph.prefix(inputs, {}) == ""


def test_an_unread_graph_keeps_dynamos_and_says_why(met):
    *_, gm = met
    why = Decline("HOP_UNSUPPORTED", hint="planted")
    graph = MatchedGraph.unread(gm, why)
    assert graph.normal is gm and graph.declined == [why] and graph.regions == []
    assert graph.identity == []


def test_capture_and_backend_start_from_the_same_graph():
    model, x = Stack(2).eval(), torch.randn(2, 5, 24)
    capture = attnpass.Capture(model).trace(x)
    assert isinstance(capture.graphs[0].matched, MatchedGraph)
    names = [r.site.name for r in capture.graphs[0].matched.regions]
    assert names == [s.name for s in capture.sites] == ["blocks.0.attn", "blocks.1.attn"]
