"""Attention outside every graph is declined by name, and attention in a graph is not."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import Stack
from torch import nn

import attnpass
from attnpass.capture.uncaptured import with_break
from attnpass.site import Decline


class Skipped(nn.Module):
    """Attention in a context that Dynamo does not compile."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, 12)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.attend(q, k, v).transpose(1, 2).flatten(2)

    @torch.compiler.disable
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def declined(model, *inputs):
    report = attnpass.find_sites(model, *inputs)
    return [d for d in report.declined if d.code == "NOT_CAPTURED"]


def test_attention_that_dynamo_skips_is_declined_with_its_module_and_line():
    model = nn.Sequential(Skipped(), Stack(1)).eval()
    (found,) = declined(model, torch.randn(2, 5, 24))
    assert found.path == "0" and "test_uncaptured.py" in found.source


@pytest.mark.parametrize("train", [True, False])
def test_attention_in_a_graph_is_not(train):
    x = torch.randn(2, 5, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.TransformerEncoderLayer(24, 2, dropout=0.0, batch_first=True).train(train)
        assert declined(layer, x) == [] == declined(Stack(2).train(train), x)


# Dynamo itself looks at .grad of every input
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_buffers_and_random_numbers_are_as_before():
    class Counting(Skipped):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(F.dropout(x, 0.5))

    model = Counting().train()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    attnpass.find_sites(model, torch.zeros(2, 5, 24))
    assert model.calls == 0
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), want)


class Broken(nn.Module):
    """The weights' columns are chosen by data: the graph breaks between weights and values."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        w = (q @ k.mT).softmax(-1)
        keep = torch.unique(w.sum((0, 1)).topk(2).indices)
        return w[:, :, keep] @ v[:, keep]


class Branches(nn.Module):
    """An operator with bodies of its own: there is no rule for listening inside."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Stack(1), Stack(1)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: self.b(y), (x,))


def test_a_break_between_weights_and_values_is_named():
    report = attnpass.find_sites(Broken().eval(), torch.randn(2, 5, 24))
    (found,) = [d for d in report.declined if d.code == "CROSS_GRAPH"]
    assert report.sites == [] and "the graph breaks at" in found.hint
    assert "test_uncaptured.py:" in found.hint


def test_attention_in_both_branches_is_declined_where_it_stands():
    report = attnpass.find_sites(Branches().eval(), torch.randn(2, 5, 24))
    assert {d.code for d in report.declined} == {"HOP_UNSUPPORTED"} and len(report.declined) == 2


def test_the_nearest_break_of_the_same_file_is_the_one_that_is_named():
    decline = Decline("CROSS_GRAPH", source="a.py:10", hint="left")
    breaks = [("other", ["b.py:9"]), ("far", ["a.py:90"]), ("near", ["x.py:1", "a.py:12"])]
    assert with_break(decline, breaks).hint == "left; the graph breaks at a.py:12: near"
    assert with_break(decline, []) == decline
    other = replace(decline, code="AXIS_UNPROVEN")
    assert with_break(other, breaks) == other


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_that_torch_itself_quantised_break_every_graph():
    """Their packed weights are objects that Dynamo cannot hold; what stands alone is a site."""
    quantise = torch.ao.quantization.quantize_dynamic
    model, x = quantise(Stack(1).eval(), {nn.Linear}, dtype=torch.qint8), torch.randn(2, 5, 24)
    report = attnpass.find_sites(model, x)
    assert report.graphs > 1 and len(report.sites) == 1
    torch._dynamo.reset()
    options = {"form": "softmax", "inner": "eager"}
    with torch.no_grad():
        got = torch.compile(model, backend="attnpass", options=options)(x)
        torch.testing.assert_close(got, model(x), rtol=0, atol=1e-5)
