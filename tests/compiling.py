"""A stack of blocks compiled under a plan, beside the same model captured: what tests compare."""

from __future__ import annotations

import torch
from models import DISTINCT, Stack

import attnpass
from attnpass import Plan

BOUND = 1e-5

INNER = ("eager", "aot_eager")

FORMS = ("sigmoid", "relu", "hydra", "skipat")


def data(batch=2, tokens=5):
    return torch.randn(batch, tokens, DISTINCT.D, generator=torch.Generator().manual_seed(batch))


def error(got, want):
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    return ((got - want).abs().max() / want.abs().max()).item()


def build(depth=2, **kwargs):
    torch.manual_seed(3)
    return Stack(depth, **kwargs).eval()


def shaken(plan):
    """The plan with parameters away from their start, other ones at every site."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in plan.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return plan


def make_plan(model, x, form="sigmoid", **kwargs):
    return shaken(Plan.create(model, x, form=form, **kwargs))


def captured(model, plan, *inputs):
    """The reference: the model under the plan, captured without any break."""
    capture = attnpass.Capture(model).trace(*inputs)
    assert set(capture.use(plan)) == {n for n, e in plan.sites.items() if e.form != "softmax"}
    return capture


def compiled(model, inner="eager", **options):
    return torch.compile(model, backend="attnpass", options={"inner": inner, **options})


class Counted:
    """An inner compiler that counts graphs; it runs them as they are unless told otherwise."""

    def __init__(self, compiler=None):
        self.graphs, self.compiler = [], compiler

    def __call__(self, gm, inputs):
        self.graphs.append(gm)
        return self.compiler(gm, inputs) if self.compiler else gm.forward


def attention_calls(gm):
    return sum("softmax" in str(n.target) or "scaled_dot" in str(n.target) for n in gm.graph.nodes)


def two_of_six(model, x, form="relu"):
    """A plan that converts layers 1 and 4 of six, with parameters of their own."""
    return shaken(Plan.create(model, x, form=form, sites=["blocks.1.*", "blocks.4.*"]))


def six(broken=False, **kwargs):
    model = build(6, **kwargs)
    for block in model.blocks:
        block.broken = broken
    return model
