"""Which layers of a plan a graph serves, and by which parameters a call of each is known."""

from __future__ import annotations

import pytest
import torch
from compiling import BOUND, build, captured, data, error, make_plan, shaken
from provers import mutated, numbered
from torch import nn

import attnpass
from attnpass import Plan
from attnpass.compiled import layers
from attnpass.compiled.layers import Served, layer, others, refuse_missed, refused, served
from attnpass.errors import PlanError
from attnpass.matching import MatchedGraph
from attnpass.plan import Delta
from attnpass.plan.identity import Bindings


def graphs(model, x):
    """The matched graphs of a model with their inputs, as a backend is given them."""
    torch._dynamo.reset()
    seen = []

    def backend(gm, inputs):
        seen.append((MatchedGraph.of(gm, inputs).outline, list(inputs)))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return [(g, i) for g, i in seen if g.sites]


def test_a_graph_of_the_whole_model_serves_it_once():
    model = build(2)
    ((graph, inputs),) = graphs(model, data())
    plan = make_plan(model, data())
    found = served(graph, inputs, plan)
    names = {f"blocks.{i}.attn": f"blocks.{i}.attn" for i in range(2)}
    assert found == Served(names, [])
    one = layer(graph, inputs, plan, names, {}, strict=True)
    assert one.names == names and set(one.modules) == set(names) and one.deltas == {}
    assert one.identity and all(inputs[i] is now() for i, now in one.identity)


def test_a_graph_of_a_block_is_the_layer_whose_parameters_it_brings():
    whole, x = build(3), data()
    plan = make_plan(whole, x)
    for i, block in enumerate(whole.blocks):
        ((graph, inputs),) = graphs(block, x)
        assert served(graph, inputs, plan).names == {"attn": f"blocks.{i}.attn"}
    rest = others(graph, plan, {"attn": "blocks.2.attn"})
    assert rest == [{"attn": "blocks.0.attn"}, {"attn": "blocks.1.attn"}]


def test_exchanged_parameters_are_still_the_layer():
    """The place in the model counts, not the object."""
    model, x = build(2), data()
    plan = make_plan(model, x)
    ((graph, inputs),) = graphs(model.blocks[1], x)
    one = layer(graph, inputs, plan, {"attn": "blocks.1.attn"}, {}, strict=True)
    state = {k: v * 1.5 for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    ((graph, later),) = graphs(model.blocks[1], x)
    assert all(later[i] is now() and later[i] is not inputs[i] for i, now in one.identity)
    assert served(graph, later, plan).names == {"attn": "blocks.1.attn"}


def unknown(change=1.25):
    """A graph of a block whose weights are not the recorded ones, under a plan of no model."""
    model, x = build(2), data()
    plan = make_plan(model, x)
    plan.bindings = Bindings()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(change)
    ((graph, inputs),) = graphs(model.blocks[0], x)
    return graph, inputs, plan


def test_what_is_not_known_is_said_or_raised(caplog):
    found = served(*unknown())
    assert found == Served({}, ["attn"])
    assert "bind" in refused(found, unknown()[2], strict=False)
    assert "expected the plan's sites blocks.0.attn" in caplog.text
    with pytest.raises(PlanError, match="no site of the plan is known to be attn"):
        refused(found, unknown()[2], strict=True)


def regional() -> float:
    """The error of blocks that are compiled one by one, under a plan of other values each."""
    torch._dynamo.reset()
    model, x = build(2), data()
    plan = shaken(Plan.create(model, x, form="relu"))
    want = captured(model, plan, x)
    for block in model.blocks:
        block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
    with torch.no_grad():
        return error(model(x), want(x))


def swapped() -> dict[str, str]:
    """Two attentions of equal shape under names that a plan has the other way round."""
    model, x = build(2), data()
    plan = make_plan(model, x)
    a, b = plan.sites
    plan.sites = {a: plan.sites[b], b: plan.sites[a]}
    plan.bindings._projections = {
        a: plan.bindings.places_of(b),
        b: plan.bindings.places_of(a),
    }
    ((graph, inputs),) = graphs(model, x)
    return served(graph, inputs, plan).names


CROSSED = {"blocks.0.attn": "blocks.1.attn", "blocks.1.attn": "blocks.0.attn"}


def test_condition_1_without_it_names_decide():
    assert swapped() == CROSSED
    with mutated("compiled.layers", "_by_parameters(graph, inputs, plan) or ", ""):
        assert swapped() != CROSSED


def test_condition_2_equal_weights_under_a_fitting_name():
    graph, inputs, plan = unknown(1.0)
    assert served(graph, inputs, plan).names == {"attn": "blocks.0.attn"}
    plan.sites = {"other": plan.sites["blocks.0.attn"]}
    assert served(graph, inputs, plan).names == {}
    with mutated("compiled.layers", "f\".{site.partition('#')[0]}\".endswith(ends)", "True"):
        assert served(graph, inputs, plan).names == {"attn": "other"}


def test_condition_3_names_decide_for_the_whole_model_alone():
    graph, inputs, plan = unknown()
    assert served(graph, inputs, plan).names == {}
    plan.sites = {
        "attn": plan.sites["blocks.0.attn"],
        "blocks.0.attn": plan.sites["blocks.1.attn"],
    }
    assert served(graph, inputs, plan).names == {}
    with mutated("compiled.layers", "set(own) == plan.sites.keys()", "True"):
        assert served(graph, inputs, plan).names == {"attn": "attn"}
    plan.sites = {"attn": plan.sites["attn"]}
    assert served(graph, inputs, plan) == Served({"attn": "attn"}, [], anyone=True)


def tied(forms):
    """One block that is called twice, compiled alone, under a plan of a form for each call."""
    model, x = build(1), data()
    model.blocks.append(model.blocks[0])
    plan = Plan.create(model, x, form="sigmoid").constant()
    assert list(plan.sites) == ["blocks.0.attn", "blocks.1.attn"]
    for entry, form in zip(plan.sites.values(), forms, strict=True):
        entry.form = form
    plan.values = {}
    whole = graphs(model, x)[0]
    return served(*whole, plan).names, served(*graphs(model.blocks[0], x)[0], plan).names


def test_condition_4_calls_that_cannot_be_told_apart_have_one_form_or_none():
    whole, block = tied(("sigmoid", "sigmoid"))
    assert len(set(whole.values())) == 2 and block == {"attn": "blocks.0.attn"}
    whole, block = tied(("sigmoid", "relu"))
    assert len(set(whole.values())) == 2 and block == {}
    with mutated("compiled.layers", "elif sites and _alike(sites, plan):", "elif sites:"):
        assert tied(("sigmoid", "relu"))[1] != {}


def test_condition_5_what_is_unknown_is_declined(caplog):
    graph, inputs, plan = unknown()
    torch._dynamo.reset()
    attnpass.reset_report()
    block = build(2).blocks[0]
    with torch.no_grad():
        for p in block.parameters():
            p.mul_(1.25)
        block.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
        block(data())
    report = attnpass.compiled_report()
    assert [d.code for d in report.declined] == ["SHARED_GRAPH"] and report.rewritten == {}


def test_condition_6_a_site_whose_parameters_come_is_not_passed_over(caplog):
    model, x = build(2), data()
    plan = make_plan(model, x)
    ((graph, inputs),) = graphs(model, x)
    names = served(graph, inputs, plan).names
    refuse_missed(inputs, plan, names, strict=True)
    del names["blocks.1.attn"]
    with pytest.raises(PlanError, match=r"expected the attention blocks\.1\.attn in a graph"):
        refuse_missed(inputs, plan, names, strict=True)
    with mutated("compiled.layers", "given.issuperset(own[site])", "False"):
        layers.refuse_missed(inputs, plan, names, strict=True)


def test_condition_7_without_comparing_parameters_the_first_layer_serves_all():
    assert regional() < BOUND
    line = "all(args[i] is now() for i, now in self.layer.identity)"
    with mutated("compiled.dispatch", line, "True"):
        assert regional() > 100 * BOUND


class Same(nn.Module):
    """Attention without a parameter."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x + (x @ x.mT * self.scale).softmax(-1) @ x


def test_without_parameters_what_is_computed_tells_apart():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Same(0.3), Same(0.7)

        def forward(self, x):
            x = self.a(x)
            torch._dynamo.graph_break()
            return self.b(x)

    model, x = Two().eval(), data()
    sites = attnpass.find_sites(model, x).sites
    assert len({s.name for s in sites}) == 2
    plan = Plan.create(model, x, form="sigmoid")
    with torch.no_grad():
        want = captured(model, plan, x)(x)
        torch._dynamo.reset()
        options = {"inner": "eager", "plan": plan, "strict": True}
        assert error(torch.compile(model, backend="attnpass", options=options)(x), want) <= BOUND


def test_every_condition_has_a_test():
    stated = numbered(layers.__doc__)
    assert all(f"test_condition_{n}_" in " ".join(globals()) for n in stated) and len(stated) == 7


class Wider(nn.Module):
    """Two layers of one class and of different widths, compiled one by one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(12, 24), Layer(24, 12), Layer(12, 12)])

    def forward(self, x):
        for one in self.layers:
            x = one(x)
        return x


class Layer(nn.Module):
    """Single-headed attention, then another width."""

    def __init__(self, width, out):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in "qkv")
        self.o = nn.Linear(width, out)

    def forward(self, x):
        return self.o(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def test_of_layers_that_do_not_come_through_a_graph_nothing_is_said(warnings_):
    """A graph prepares other layers of its inner names; they need not have its shapes."""
    model = Wider().eval()
    x = torch.randn(2, 5, 12)
    plan = make_plan(model, x)
    for i, one in enumerate(model.layers):
        delta = Delta(one.q.weight.shape)
        nn.init.normal_(delta.full, std=0.2)
        plan.deltas[f"layers.{i}"] = {f"layers.{i}.q.weight": delta}
    want = captured(model, plan, x)(x)
    torch._dynamo.reset()
    for one in model.layers:
        one.compile(backend="attnpass", options={"inner": "eager", "plan": plan})
    with torch.no_grad():
        assert error(model(x), want) <= BOUND
    assert sorted(attnpass.compiled_report().rewritten) == [f"layers.{i}" for i in range(3)]
    assert warnings_() == []


def test_a_model_inside_another_module_has_its_deltas(warnings_):
    """The graph's paths are longer than the plan's."""
    model, x = build(2), data()
    plan = make_plan(model, x)
    for i, block in enumerate(model.blocks):
        delta = Delta(block.attn.q.weight.shape)
        nn.init.normal_(delta.full, std=0.3)
        plan.deltas[f"blocks.{i}.attn"] = {f"blocks.{i}.attn.q.weight": delta}
    want = captured(model, plan, x)(x)
    torch._dynamo.reset()
    options = {"inner": "eager", "plan": plan, "strict": True}
    with torch.no_grad():
        got = torch.compile(nn.Sequential(model), backend="attnpass", options=options)(x)
    assert error(got, want) <= BOUND and warnings_() == []
