"""Which layers of a plan a graph serves, and by which parameters a call of each is known."""

from __future__ import annotations

import pytest
import torch
from compiling import BOUND, build, captured, data, error, make_plan, shaken
from provers import mutated, numbered

from attnpass import Plan
from attnpass.compiled import layers
from attnpass.compiled.layers import layer, served
from attnpass.errors import PlanError
from attnpass.matching import MatchedGraph
from attnpass.plan.identity import Bindings
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


def other_copy():
    """A graph of a block of another copy of the model than the plan's."""
    x = data()
    plan = make_plan(build(2), x)
    ((block, given),) = graphs(build(2).blocks[0], x)
    return served(block, given, plan, Report(), strict=False)


def test_parameters_of_another_copy_go_by_the_path_alone():
    x = data()
    plan = make_plan(build(2), x)
    ((graph, inputs),) = graphs(build(2), x)
    assert len(served(graph, inputs, plan, Report(), strict=False)) == 1
    assert other_copy() == []


def regional() -> float:
    """The error of blocks that are compiled one by one, under a plan of two other forms."""
    torch._dynamo.reset()
    model, x = build(2), data()
    plan = shaken(Plan.create(model, x, form="relu"))
    want = captured(model, plan, x)
    for block in model.blocks:
        block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
    with torch.no_grad():
        return error(model(x), want(x))


def unbound() -> list:
    """The layers that a graph of a block serves under a plan that knows no model."""
    model, x = build(2), data()
    plan = make_plan(model, x)
    plan.bindings = Bindings()
    ((graph, inputs),) = graphs(model.blocks[0], x)
    return served(graph, inputs, plan, Report(), strict=False)


def test_condition_1_without_comparing_parameters_the_first_layer_serves_all():
    assert regional() < BOUND
    with mutated(
        "compiled.dispatch", "all(args[i] is ref() for i, ref in layer.identity)", "True"
    ):
        assert regional() > 100 * BOUND


def test_condition_2_without_it_a_plan_reaches_a_graph_by_no_name():
    assert unbound() == []
    line = "[own] if all(name in plan.sites for name in own) else []"
    with mutated("compiled.layers", line, "[own]"):
        assert unbound() != []


def test_condition_3_without_it_a_block_of_another_model_is_taken():
    assert other_copy() == []
    line = "layers[:1] if layers[:1] == [own] else []"
    with mutated("compiled.layers", line, "layers"):
        assert other_copy() != []


def test_every_condition_has_a_test():
    stated = numbered(layers.__doc__)
    assert all(f"test_condition_{n}_" in " ".join(globals()) for n in stated) and len(stated) == 3
