"""Deltas run in every way: captured, compiled and converted, and the model is never changed."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from deltas import Broken, changed, close, compiled, data, expected, model
from torch import nn

from attnpass import Capture, convert

FORMS = ["sigmoid", "hydra"]


RANKS = [None, 2]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("form", FORMS)
def test_capture_compiled_and_converted_give_the_sums(form, rank):
    net, x = model(), data()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    plan = changed(net, form, rank)
    want = expected(net, plan, x)
    capture = Capture(net).trace(x)
    with torch.no_grad():
        plain = net(x)
        capture.use(plan, strict=True)
        close(capture(x), want)
        close(compiled(net, plan)(x), want)
        close(convert(net, plan, x)(x), want)
        bare = copy.copy(plan)
        bare.deltas = {}
        capture.use(bare)
        assert not torch.allclose(capture(x).double(), want, atol=1e-3)
        capture.use(None)
        torch.testing.assert_close(capture(x), plain)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("way", ["capture", "compiled"])
@pytest.mark.parametrize("rank", RANKS)
def test_a_changed_weight_or_delta_is_seen(way, rank):
    net, x = model(), data()
    plan = changed(net, rank=rank)
    capture = Capture(net).trace(x)
    capture.use(plan)
    run = capture if way == "capture" else compiled(net, plan)
    with torch.no_grad():
        first = run(x)
        close(run(x), first.double())
        for change in (net.blocks[0].attn.qkv.weight, *list(plan.parameters())[-2:]):
            change.mul_(1.5)
            again = run(x)
            assert not torch.allclose(again, first, atol=1e-4)
            close(again, expected(net, plan, x))
            first = again


@pytest.mark.parametrize(
    "way", ["capture", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_weights_and_deltas_are_both_trained(way):
    """The slow case adds inductor's own backward graph of the sum."""
    net, x = model(), data()
    plan = changed(net, "hydra")
    if way == "capture":
        run = Capture(net).trace(x)
        run.use(plan)
    else:
        run = compiled(net, plan, way)
    run(x).square().sum().backward()
    for path, delta in plan.deltas["blocks.1.attn"].items():
        weight = net.get_parameter(path)
        assert weight.grad.abs().max() > 0
        torch.testing.assert_close(weight.grad, delta.full.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("grad", [False, True])
def test_layers_that_share_a_graph_have_their_own_deltas(grad):
    net, x = Broken().eval(), data()
    plan = changed(net, "sigmoid", sites=["*blocks.0*", "*blocks.2*"])
    assert sorted(plan.deltas) == ["net.blocks.0.attn", "net.blocks.2.attn"]
    want = expected(net, plan, x)
    with torch.set_grad_enabled(grad):
        capture = Capture(net)
        capture(x)
        capture.use(plan, strict=True)
        close(capture(x), want)
        close(compiled(net, plan, "eager")(x), want)


class Aliased(nn.Module):
    """A module that is registered under two paths."""

    def __init__(self) -> None:
        super().__init__()
        net = model()
        self.first = net.blocks[0].attn
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_a_module_of_two_names_is_the_same_captured_and_compiled():
    net, x = Aliased().eval(), data()
    plan = changed(net)
    want = expected(net, plan, x)
    capture = Capture(net).trace(x)
    with torch.no_grad():
        capture.use(plan, strict=True)
        close(capture(x), want)
        close(compiled(net, plan)(x), want)


def test_a_site_that_stays_softmax_keeps_its_weights(caplog):
    net, x = model(), data()
    plan = changed(net)
    plan.sites["blocks.1.attn"].fits["heads"] = 7
    capture = Capture(net).trace(x)
    with caplog.at_level(logging.WARNING, "attnpass"):
        capture.use(plan)
    ((_, layer),) = capture.layers
    paths = {path for path, at in layer.positions.items() if at in layer.deltas}
    assert {path.split(".attn.")[0] for path in paths} == {"blocks.0", "blocks.2"}
