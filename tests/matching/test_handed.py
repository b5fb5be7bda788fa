"""Axes are known across a graph break: channel attention behind one is no site."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnpass
from attnpass.matching import handed


class Images(nn.Module):
    """Attention between channels or between pixels, the graph broken before it or not.

    Input ``[B, C, H, W]``; ``scale`` is read as a number, which breaks the graph.
    """

    def __init__(self, over, broken):
        super().__init__()
        self.qkv, self.scale = nn.Conv2d(6, 18, 1), nn.Parameter(torch.ones(1))
        self.over, self.broken = over, broken

    def forward(self, x):
        q, k, v = (t.flatten(2) for t in self.qkv(x).chunk(3, 1))
        if self.over == "pixels":
            q, k, v = (t.mT for t in (q, k, v))
        scale = float(self.scale.detach().mean()) if self.broken else 1.0
        if self.over == "written out":
            return (q @ k.mT * scale).softmax(-1) @ v
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


IMAGE = torch.randn(2, 6, 4, 4)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("over", ["channels", "written out"])
def test_channel_attention_behind_a_break_is_no_site(over, broken):
    report = attnpass.find_sites(Images(over, broken).eval(), IMAGE)
    assert not report.sites
    assert {d.code for d in report.declined} <= {"NOT_ATTENTION:channel", "AXIS_NOT_TOKEN"}
    assert len(report.declined) == 1


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_the_backend_knows_it_too(inner):
    model = Images("channels", True).eval()
    options = {"form": "sigmoid", "inner": inner}
    attnpass.reset_report()
    with torch.no_grad():
        out = torch.compile(model, backend="attnpass", options=options)(IMAGE)
    assert torch.allclose(out, model(IMAGE), atol=1e-5)
    assert not attnpass.compiled_report().rewritten


@pytest.mark.parametrize("broken", [False, True])
def test_attention_between_tokens_is_found_behind_a_break(broken):
    """Queries and keys of the same tokens: self-attention, which no single graph could tell."""
    (site,) = attnpass.find_sites(Images("pixels", broken).eval(), IMAGE).sites
    assert (site.kind, site.query_len, site.head_dim) == ("self", 16, 6)


def test_other_sizes_go_through_a_break():
    """The second size makes symbols of the sizes in both graphs, or in one."""
    model = Images("pixels", True).eval()
    options = {"form": "sigmoid", "inner": "eager", "strict": True}
    run = torch.compile(model, backend="attnpass", options=options)
    with torch.no_grad():
        outs = [run(torch.randn(2, 6, n, 4)) for n in (4, 5, 7)]
    assert [x.shape[1] for x in outs] == [16, 20, 28]
    assert len(attnpass.compiled_report().rewritten) == 1


def test_tensors_are_not_kept_alive():
    model = Images("pixels", True).eval()
    attnpass.find_sites(model, IMAGE)
    gc.collect()
    assert len(handed._HANDED) == 0


def test_a_graph_that_ends_with_its_function_hands_nothing():
    def run(x):
        return x

    assert handed.handing(run, []) is run


def test_what_was_computed_between_two_graphs_is_unknown():
    """A copy is another tensor: nothing is told of it."""

    class Copied(Images):
        def forward(self, x):
            q, k, v = (t.flatten(2) for t in self.qkv(x).chunk(3, 1))
            torch._dynamo.graph_break()
            q, k, v = between(q), between(k), between(v)
            return F.scaled_dot_product_attention(q, k, v)

    assert len(attnpass.find_sites(Copied("channels", True).eval(), IMAGE).sites) == 1


@torch.compiler.disable
def between(x):
    return x.clone()


def attend(q, k, v):
    torch._dynamo.graph_break()
    return (q @ k.mT).softmax(-1) @ v


class Shared(nn.Module):
    """One function, broken inside, between tokens and then between channels, as many of each."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, turned):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if turned:
            q, k, v = (y.mT.contiguous() for y in (q, k, v))
        return attend(q, k, v)


def test_a_graph_that_is_used_again_for_other_axes_runs_as_it_was():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, 8, 8)
    run = torch.compile(model, backend="attnpass", options={"form": "sigmoid", "inner": "eager"})
    with torch.no_grad():
        for turned in (False, True, False):
            same = torch.allclose(run(x, turned), model(x, turned), atol=1e-5)
            assert same == turned


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.unsqueeze_(1),
        lambda y: y.transpose_(1, 2),
        lambda y: y.set_(y.mT.contiguous()),
    ],
)
def test_a_tensor_that_was_changed_between_two_graphs_is_unknown(change):
    @torch.compiler.disable
    def changed(*given):
        for y in given:
            change(y)

    class Changed(Shared):
        def forward(self, x):
            given = [y.detach() for y in (self.q(x), self.k(x), self.v(x))]
            changed(*given)
            q, k, v = given
            return (q @ k.mT).softmax(-1) @ v

    with torch.no_grad():
        assert len(attnpass.find_sites(Changed().eval(), torch.randn(2, 8, 8)).sites) == 1


def test_an_error_of_its_own_leaves_the_model_as_it_is(monkeypatch):
    def broken(*_):
        raise KeyError("inside")

    monkeypatch.setattr(handed, "_outgoing", broken)
    torch._dynamo.reset()
    model = Images("pixels", True).eval()
    run = torch.compile(model, backend="attnpass", options={"form": "softmax", "inner": "eager"})
    with torch.no_grad():
        assert torch.allclose(run(IMAGE), model(IMAGE), atol=1e-5)
