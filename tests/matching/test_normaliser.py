"""Attention that is not understood in full is found, and its softmax alone is exchanged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exchanged import exchanged
from models.loose import LOOSE
from models.sizes import DISTINCT, EQUAL
from torch import nn
from tracing import holders, only, proven, shapes, traced

import attnpass
from attnpass.matching.facts import GraphFacts
from attnpass.matching.normaliser import read_normaliser
from attnpass.matching.refuse import Refuse

SIZES = {"distinct": DISTINCT, "equal": EQUAL}


def built(name, sizes):
    torch.manual_seed(0)
    model = LOOSE[name](sizes).eval().double()
    return model, torch.randn(sizes.B, sizes.T, sizes.D, dtype=torch.float64)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", LOOSE)
def test_it_is_found(name, sizes):
    model, x = built(name, SIZES[sizes])
    report = attnpass.find_sites(model, x)
    (site,) = report.sites
    assert report.declined == []
    legal = {form for form, no in site.legal.items() if no is None}
    if site.degree == "logits":
        assert site.swapped and legal == {"softmax", "sigmoid", "relu"}
        assert site.legal["hydra"].hint and site.legal["hydra"].code != "MASK_ARBITRARY"
    assert {"softmax", "sigmoid", "relu"} <= legal


@pytest.mark.parametrize("form", ["softmax", "sigmoid", "relu"])
@pytest.mark.parametrize("name", LOOSE)
def test_forms_are_those_of_the_same_model_with_another_normaliser(name, form):
    """Outputs and gradients, against the model itself in eager float64."""
    model, x = built(name, DISTINCT)
    leaves = [x.requires_grad_(), *model.parameters()]
    want = model(x) if form == "softmax" else exchanged(model, form, x)
    run = torch.compile(
        model, backend="attnpass", options={"form": form, "strict": True, "inner": "eager"}
    )
    got = run(x)
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-8)
    grad = torch.randn_like(want)
    found, wanted = (torch.autograd.grad(y, leaves, grad, allow_unused=True) for y in (got, want))
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def vectors(q, k, v):
    return torch.mv(v.T, torch.mv(k, q[0]).mul(0.5).softmax(0))


def rows(q, k, v):
    return torch.mv(k, q[0]).softmax(0) @ v


def matrix_times_vector(q, k, v):
    return (k @ q[0]).softmax(-1) @ v


def letters(q, k, v):
    return torch.einsum("s,sd->d", torch.einsum("sd,d->s", k, q[0]).softmax(0), v)


def sums(q, k, v):
    return ((k * q[0]).sum(-1).softmax(0)[:, None] * v).sum(0)


def inner(q, k, v):
    return torch.inner(k, q[0]).softmax(0) @ v


@pytest.mark.parametrize("core", [vectors, rows, matrix_times_vector, letters, sums, inner])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_one_query_without_an_axis_of_rows(core, form):
    torch._dynamo.reset()
    q, k, v = (torch.randn(n, 4, dtype=torch.float64) for n in (5, 7, 7))
    (region,) = proven(core, q, k, v).regions
    assert (region.site.kind, region.site.degree) == ("class", "logits")
    want = core(q, k, v) if form == "softmax" else exchanged(core, form, q, k, v)
    options = {"form": form, "inner": "eager", "strict": True}
    with torch.no_grad():
        got = torch.compile(core, backend="attnpass", options=options)(q, k, v)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


class OneRow(nn.Module):
    """Softmax of what weights make of one vector: a router, and a pool of learnt queries."""

    def __init__(self, learnt):
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.randn(7, 4)) for _ in range(2))
        self.learnt = learnt

    def forward(self, x):
        if self.learnt:
            return torch.mv(x, self.values[0]).softmax(0) @ x
        return torch.mv(self.keys, x[0]).softmax(0) @ self.values


@pytest.mark.parametrize("learnt", [False, True])
def test_a_vector_times_weights_is_no_attention(learnt):
    report = attnpass.find_sites(OneRow(learnt), torch.randn(6, 4))
    assert not report.sites
    assert [d.code for d in report.declined] == ["NOT_ATTENTION:router"] or learnt
    assert report.declined


class Sampled(nn.Module):
    """Weights that leave for another use beside their product with values."""

    def forward(self, q, k, v):
        w = (q @ k.mT).softmax(-1)
        return w @ v, w.sum(-2).nan_to_num()


def test_weights_that_are_read_elsewhere_forbid_other_weights():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    (site,) = attnpass.find_sites(Sampled(), q, k, v).sites
    assert site.legal["softmax"] is None
    assert site.legal["sigmoid"].code == site.legal["relu"].code == "PROBS_ESCAPE"


class MixedChannels(nn.Module):
    """Tokens mixed by a linear layer, then attention between channels."""

    def __init__(self):
        super().__init__()
        self.mix, self.qkv = nn.Linear(7, 7), nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.qkv(self.mix(x.mT).mT).chunk(3, -1)  # [B, 7, 6]
        scores = torch.nan_to_num(q.mT @ k)
        return (scores.softmax(-1) @ v.mT).mT


class GatedRouter(nn.Module):
    """Experts weighed by softmax of a projection of what an attention gave, then summed."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 3), nn.Linear(6, 18)

    def forward(self, x):
        y = F.scaled_dot_product_attention(x, x, x)
        w = torch.nan_to_num(self.gate(y)).softmax(-1)
        return torch.einsum("bte,bted->btd", w, self.experts(y).unflatten(-1, (3, 6)))


class Slots(nn.Module):
    """Softmax over the slots that ask; the weights are then shared out over the keys."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        w = (self.q(x[:, :2]) @ self.k(x).mT).nan_to_num().softmax(1)
        return (w / w.sum(-1, keepdim=True)) @ self.v(x)


class RoutedByHand(nn.Module):
    """The same router, the attention before it spelled by hand and without a projection."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.experts = nn.Linear(6, 18)

    def forward(self, x):
        y = (self.q(x) @ self.k(x).mT).softmax(-1).nan_to_num() @ self.v(x)
        return torch.einsum("bte,bted->btd", y.softmax(-1), self.experts(x).unflatten(-1, (3, 6)))


class Convolved(nn.Module):
    """A graph convolution: a given matrix mixes nodes; softmax compares features."""

    def __init__(self):
        super().__init__()
        self.l, self.e = nn.Linear(6, 3), nn.Linear(6, 6)

    def forward(self, x):
        adjacency = x @ x.mT * 0.1
        return (adjacency @ self.l(x)).softmax(-1) @ self.e(x)[:, :3]


class PooledChannels(nn.Module):
    """Channel attention on a pooled image, its logits reversed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x):
        y = torch.nn.functional.max_pool2d(self.conv(x[:, None, :6]), 2).flatten(2)
        energy = y @ y.mT
        energy = energy.amax(-1, keepdim=True) - energy
        return energy.softmax(-1) @ y


class Sums(nn.Module):
    """Sums of every feature of one vector and every feature of another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        y = x.mean(1)
        w = (self.a(y)[:, :, None] + self.b(y)[:, None, :]).softmax(-1)
        return (w @ self.c(y)[:, :, None]).squeeze(-1)


class Noise(nn.Module):
    """Experts weighed by a projection and a number of their own for each item."""

    def __init__(self):
        super().__init__()
        self.gate, self.more = nn.Linear(6, 3), nn.Linear(6, 3)
        self.table = nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        return (self.gate(x) + self.more(x.mean(1))[:, None]).softmax(-1) @ self.table


class CrossEntropy(nn.Module):
    """Two maps are compared: what the weights meet are the logarithms of other weights."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        return -((q @ k.mT).softmax(-1) * 1.5 @ (k @ q.mT).log_softmax(-1).mT)


class ChannelsOfInput(nn.Module):
    """Channel attention on an input whose features are told by a layer behind it alone."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 6)

    def forward(self, x):
        return self.out(((x.mT @ x * 0.3).softmax(-1) @ x.mT).mT)


class Experts(nn.Module):
    """A router whose codes are projected weighs what experts make of each token."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4, 6))
        self.q, self.k, self.experts = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 24)

    def weights(self, x):
        return (self.q(x) @ self.k(self.codes).mT).softmax(-1)

    def forward(self, x):
        return (self.weights(x).unsqueeze(-2) @ self.experts(x).unflatten(-1, (4, 6))).squeeze(-2)


class ExpertsByEinsum(Experts):
    def forward(self, x):
        made = self.experts(x).unflatten(-1, (4, 6))
        return torch.einsum("bte,btef->btf", self.weights(x), made)


class ExpertsBySum(Experts):
    def forward(self, x):
        made = self.experts(x).unflatten(-1, (4, 6))
        return (self.weights(x).unsqueeze(-1) * made).sum(-2)


OTHERS = [Experts, ExpertsByEinsum, ExpertsBySum]
OTHERS += [MixedChannels, GatedRouter, Slots, RoutedByHand, Convolved, PooledChannels]
OTHERS += [Sums, Noise, CrossEntropy, ChannelsOfInput]


@pytest.mark.parametrize("kind", OTHERS)
def test_what_looks_alike_is_declined(kind):
    report = attnpass.find_sites(kind().eval(), torch.randn(2, 7, 6))
    # the attention before a router is one
    assert len(report.sites) == (kind in (GatedRouter, RoutedByHand))
    assert report.declined
    if issubclass(kind, Experts):
        (decline,) = report.declined
        assert decline.code == "NOT_ATTENTION:router" and "experts" in decline.hint


def test_a_learned_memory_is_attended_to():
    class Learned(Experts):
        def forward(self, x):
            return self.weights(x) @ self.q(self.codes)

    class Folded(Experts):
        def forward(self, x):
            values = self.q(x)[:, :4]
            w, v = self.weights(x).flatten(0, 1), values[:, None].expand(-1, x.shape[1], -1, -1)
            return (w[:, None] @ v.flatten(0, 1)).squeeze(1)

    class Repeated(Experts):
        def forward(self, x):
            values = self.q(x)[:, :4]
            every = values[:, None].repeat(1, x.shape[1], 1, 1)
            return torch.einsum("bts,btsd->btd", self.weights(x), every)

    for kind in (Learned, Folded, Repeated):
        (site,) = attnpass.find_sites(kind(), torch.randn(2, 7, 6)).sites
        assert site.kind == "cross"


def condition(function, *inputs, weights=0):
    """The condition by which the only softmax of a function is refused; None where it is not."""
    gm = traced(function, *inputs)
    given = holders(gm)
    facts = GraphFacts.of(gm.graph, set(given[len(given) - weights :]))
    try:
        read_normaliser(facts, only(gm, "softmax"))
    except Refuse as no:
        return no.condition
    return None


def projected(q, k, v, a, b):
    """Features made by two projections, of tokens that stay."""
    return q @ a, k @ b, v


Q, K, V = shapes()
A, B = torch.randn(2, 4, 4, dtype=torch.float64)


def test_every_condition_has_a_program_that_only_it_refuses():
    def right(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        return (q @ k.mT).sinh().softmax(-1) @ v

    def projection_before(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        return F.linear((q @ k.mT)[..., :4], a).softmax(-1) @ v[..., :4, :]

    def no_values(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        return (q @ k.mT).sinh().softmax(-1).sum(-1) + v.sum()

    def own_values(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        w = (q @ k.mT).sinh().softmax(-1)
        return w @ w.mT

    def over_tokens(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        return (q.mT @ k[..., :5, :]).sinh().softmax(-1) @ v[..., :4, :]

    def over_rows(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        return (q @ k.mT).sinh().softmax(-2).mT @ q

    def normed(q, k, v, a, b):
        q, k, v = projected(q, k, v, a, b)
        return F.layer_norm(q @ k.mT, (7,)).softmax(-1) @ v

    given = (Q, K, V, A, B)
    assert condition(right, *given, weights=2) is None
    assert condition(normed, *given, weights=2) is None
    assert condition(projection_before, *given, weights=2) == "normaliser 1"
    assert condition(no_values, *given, weights=2) == "normaliser 2"
    assert condition(own_values, *given, weights=2) == "normaliser 2"
    assert condition(over_tokens, *given, weights=2) == "normaliser 4"


def test_features_that_were_made_after_the_rows_are_what_is_summed():
    """Channels of mixed tokens: both axes of the map are features, the sum is over older ones."""

    def channels(x, mix, a, b):
        x = torch.einsum("bhnd,nm->bhmd", x, mix)
        return ((x @ a).mT @ (x @ b)).sinh().softmax(-1) @ x.mT

    def fewer_keys(x, mix, a, b):
        few = torch.einsum("bhnd,nm->bhmd", x, mix)
        return ((x @ a) @ (few @ b).mT).sinh().softmax(-1) @ few

    mix = torch.randn(5, 3, dtype=torch.float64)
    assert condition(channels, Q, mix, A, B, weights=3) == "normaliser 4"
    assert condition(fewer_keys, Q, mix, A, B, weights=3) is None


def test_an_axis_of_features_that_no_walk_follows_is_no_axis_of_keys():
    """The map is cut and put together again, by which its columns are features of a layer."""

    def remade(q, k, v, a, b):
        scores = (q @ a) @ (k @ b).mT
        made = (q @ a)[..., :4] + scores.sinh().sum()
        return made.softmax(-1) @ v[..., :4, :]

    assert condition(remade, Q, K, V, A, B, weights=2) == "normaliser 5"
