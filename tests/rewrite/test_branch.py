"""The part of a rewritten graph that one site computes, read off the original graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from tracing import holders, traced

from attnpass import forms
from attnpass.matching.verdicts import match
from attnpass.rewrite import branch, rewrite

MAKE = torch.Generator().manual_seed(1)
X = torch.randn(2, 5, 8, generator=MAKE, dtype=torch.float64)
KEEP = torch.ones(2, 5, dtype=torch.bool)
KEEP[1, 3:] = False
WEIGHTS = [torch.randn(8, 8, generator=MAKE, dtype=torch.float64) * 0.5 for _ in range(8)]


def layer(x, keep, q, k, v, o):
    heads = lambda w: F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2)  # noqa: E731
    s = (heads(q) @ heads(k).mT * 0.5).masked_fill(~keep[:, None, None], -1e9)
    return x + F.linear((s.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2), o)


def model(x, keep, *weights):
    return layer(layer(x, keep, *weights[:4]), keep, *weights[4:])


@pytest.fixture(scope="module")
def graph():
    gm = traced(model, X, KEEP, *WEIGHTS)
    return gm, match(gm.graph, set(holders(gm)[2:])).regions


class Values(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def run_node(self, n):
        value = super().run_node(n)
        self.kept = getattr(self, "kept", {})
        self.kept[n] = value
        return value


def values(gm):
    run = Values(gm)
    run.run(X, KEEP, *WEIGHTS)
    return run.kept


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("form", ["softmax", "sigmoid", "hydra"])
def test_a_branch_is_what_the_rewritten_graph_computes_there(graph, form, at):
    gm, regions = graph
    region, known = regions[at], values(gm)
    module = forms.build(form, region.site).double()
    part = branch(gm, region, module, ())
    assert part.target is region.block_out
    out, keep = part.graph(*(known[n] for n in part.reads))
    if form == "softmax":
        torch.testing.assert_close(out, known[part.target], rtol=0, atol=1e-12)
    whole = rewrite(gm, [region], {region.site.name: module})
    moved = known[part.target] - out
    if at == 1:  # the last block: what follows is the residual alone
        got = whole(X, KEEP, *WEIGHTS)
        torch.testing.assert_close(got, gm(X, KEEP, *WEIGHTS) - moved, rtol=0, atol=1e-10)
    assert keep is None or torch.equal(keep.expand(2, 1, 1, 5)[:, 0, 0], KEEP)


def test_weights_that_learn_are_read_and_what_they_make_is_computed(graph):
    gm, regions = graph
    region, known = regions[0], values(gm)
    module = forms.build("sigmoid", region.site).double()
    frozen = branch(gm, region, module, ())
    learns = branch(gm, region, module, region.parameters)
    assert not set(frozen.reads) & set(region.parameters)
    assert set(learns.reads) >= set(region.parameters)
    given = [known[n] for n in learns.reads]
    at = learns.reads.index(region.parameters[0])
    given[at] = given[at].clone().requires_grad_()
    out, _ = learns.graph(*given)
    (gradient,) = torch.autograd.grad(out.square().sum(), given[at])
    assert gradient.abs().max() > 0


def test_the_original_graph_is_left_as_it_was(graph):
    gm, regions = graph
    before = gm.code
    branch(gm, regions[0], forms.build("relu", regions[0].site).double(), ())
    assert gm.code == before
