"""Which layers of a plan a graph serves, and by which parameters a call of each is known."""

from __future__ import annotations

import pytest
import torch
from compiling import build, data, make_plan

import attnpass
from attnpass import Plan
from attnpass.compiled.layers import layer, served
from attnpass.errors import PlanError
from attnpass.matching import MatchedGraph
from attnpass.report import Report


def graphs(model, x):
    """The matched graphs of a model with their inputs, as a backend is given them."""
    torch._dynamo.reset()
    seen = []

    def backend(gm, inputs):
        seen.append((MatchedGraph.of(gm, inputs), list(inputs)))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return [(g, i) for g, i in seen if g.regions]


def test_a_graph_of_the_whole_model_serves_it_once():
    model = build(2)
    ((graph, inputs),) = graphs(model, data())
    plan = make_plan(model, data())
    names = served(graph, inputs, plan, Report(), strict=True)
    assert names == [{f"blocks.{i}.attn": f"blocks.{i}.attn" for i in range(2)}]
    found = layer(graph, inputs, plan, names[0], {}, strict=True)
    assert found.forms == dict.fromkeys(names[0], "sigmoid")
    assert set(found.modules) == set(names[0]) and found.deltas == {}
    known = {id(p) for p in model.parameters()}
    assert found.identity and all(id(ref()) in known for _, ref in found.identity)
    assert all(inputs[i] is ref() for i, ref in found.identity)


def test_a_graph_of_a_block_serves_every_layer_with_its_own_parameters():
    whole, x = build(3), data()
    plan = make_plan(whole, x)
    ((graph, inputs),) = graphs(whole.blocks[1], x)
    names = served(graph, inputs, plan, Report(), strict=False)
    assert names == [{"attn": f"blocks.{i}.attn"} for i in range(3)]
    own = [layer(graph, inputs, plan, n, {}, strict=False) for n in names]
    parameters = [{id(ref()) for _, ref in one.identity} for one in own]
    for i, found in enumerate(parameters):
        assert found <= {id(p) for p in whole.blocks[i].attn.parameters()}
    assert not parameters[0] & parameters[1]


def test_an_unbound_plan_and_a_graph_of_a_block_are_declined_aloud(tmp_path, caplog):
    model, x = build(2), data()
    plan = Plan.load(make_plan(model, x).save(tmp_path / "plan.json"))
    ((graph, inputs),) = graphs(model.blocks[0], x)
    report = Report()
    assert served(graph, inputs, plan, report, strict=False) == []
    assert [d.code for d in report.declined] == ["SHARED_GRAPH"]
    assert "does not say which layer it is" in caplog.text


def test_a_site_that_the_graph_lacks_is_said_or_raised(tmp_path, caplog):
    model, x = build(2), data()
    larger = Plan.load(make_plan(build(3), x).save(tmp_path / "plan.json"))
    ((graph, inputs),) = graphs(model, x)
    served(graph, inputs, larger, Report(), strict=False)
    assert "expected the plan's site blocks.2.attn in the graph" in caplog.text
    with pytest.raises(PlanError, match=r"blocks\.2\.attn in the graph"):
        served(graph, inputs, larger, Report(), strict=True)


def test_parameters_of_another_copy_go_by_the_path_alone():
    x = data()
    plan = make_plan(build(2), x)
    ((graph, inputs),) = graphs(build(2), x)
    assert len(served(graph, inputs, plan, Report(), strict=False)) == 1
    ((block, given),) = graphs(build(2).blocks[0], x)
    assert served(block, given, plan, Report(), strict=False) == []
    assert attnpass.Capture(build(2)) is not None
