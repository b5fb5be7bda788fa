"""One captured graph and the layers that it serves, told apart by their parameters."""

import sys

import pytest
import torch
from compiling import build, data, error
from models import Block
from torch import nn

import attnpass
from attnpass import Plan, forms


@pytest.fixture
def broken():
    """Three blocks behind graph breaks: one graph serves more than one of them."""
    torch.manual_seed(3)
    model = nn.Sequential(*(Block(broken=True) for _ in range(3))).eval()
    return model, attnpass.Capture(model).trace(data())


def test_one_graph_has_a_layer_for_every_block(broken):
    model, capture = broken
    assert len(capture.graphs) < len(model) == len(capture.layers)
    names = [region.site.name for _, layer in capture.layers for region in layer.regions]
    assert names == ["0.attn", "1.attn", "2.attn"]


def test_parameters_and_projections_are_those_of_the_layer(broken):
    model, capture = broken
    for i, (_, layer) in enumerate(capture.layers):
        name, attention = f"{i}.attn", model[i].attn
        own = {id(p) for m in (attention.q, attention.k, attention.v) for p in m.parameters()}
        assert {id(p) for p in layer.parameters[name]} == own
        assert f"{name}.o.weight" in layer.projections[name]
        assert layer.weights[f"{name}.q.weight"] is attention.q.weight


def test_a_form_at_one_layer_is_not_run_at_another(broken):
    model, capture = broken
    sites = {s.name: s for s in capture.sites}
    with torch.no_grad():
        want = model(data())
        capture.use_modules({"1.attn": forms.build("relu", sites["1.attn"], trainable=False)})
        changed = capture(data())
        capture.use(None)
        assert error(changed, want) > 1e-4 and error(capture(data()), want) == 0
        alone = attnpass.Capture(model[1]).trace(data())
        alone.use_modules({"attn": forms.build("relu", alone.sites[0], trainable=False)})
        assert error(model[2](alone(model[0](data()))), changed) <= 1e-6


def test_deltas_are_added_at_layers_that_are_rewritten():
    model, x = build(2), data()
    plan = Plan.create(model, x, form="relu", sites=["blocks.0.*"])
    capture = attnpass.Capture(model).trace(x)
    capture.use(plan)
    (_, layer), *_ = capture.layers
    assert layer.deltas == {}

    class Twice(nn.Module):
        def forward(self, weight):
            return weight * 2

    at = "blocks.0.attn.q.weight"
    with torch.no_grad():
        modules = {s.name: plan.module(s) for s in capture.sites}
        capture.choose(
            lambda site, weights: modules[site.name],
            lambda name: {at: Twice()} if name == "blocks.0.attn" else {},
        )
        got = capture(x)
        model.blocks[0].attn.q.weight.mul_(2)
        capture.use(plan)
        assert error(got, capture(x)) <= 1e-6


def test_a_graph_that_cannot_be_normalised_is_declined(monkeypatch):
    from attnpass.graph import NormalizeError, normal_form

    def refused(*args, **kwargs):
        raise NormalizeError("planted")

    real = normal_form.normalize
    for name, module in list(sys.modules.items()):  # wherever it was imported to
        if name.startswith("attnpass.") and vars(module).get("normalize") is real:
            monkeypatch.setattr(module, "normalize", refused)
    model, x = build(1), data()
    capture = attnpass.Capture(model).trace(x)
    assert [(d.code, d.hint) for d in capture.declined] == [("HOP_UNSUPPORTED", "planted")]
    with torch.no_grad():
        assert error(capture(x), model(x)) == 0
