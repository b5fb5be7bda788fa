"""A region under vmap is the batched operators that it runs, where these can be known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exchanged import exchanged
from nested import BOUND, error
from torch import nn

import attnpass


class Mapped(nn.Module):
    """Attention of one head, some part of it under vmap."""

    def __init__(self, core):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.core = core

    def forward(self, x):
        return self.o(self.core(self, self.q(x), self.k(x), self.v(x)))


def product(m, q, k, v):
    return (torch.vmap(lambda a, b: a @ b.T)(q, k) * 0.3).softmax(-1) @ v


def product_of_letters(m, q, k, v):
    scores = torch.vmap(lambda a, b: torch.einsum("id,jd->ij", a, b))(q, k)
    return (scores * 0.3).softmax(-1) @ v


def both_products(m, q, k, v):
    scores = torch.vmap(torch.mm)(q, k.mT)
    return torch.vmap(torch.mm)(scores.softmax(-1), v)


def whole(m, q, k, v):
    return torch.vmap(lambda a, b, c: (a @ b.T).softmax(-1) @ c)(q, k, v)


def heads(m, q, k, v):
    q, k, v = (t.unflatten(-1, (2, 4)) for t in (q, k, v))
    one = torch.vmap(lambda a, b, c: (a @ b.T).softmax(-1) @ c, in_dims=1, out_dims=1)
    return torch.vmap(one)(q, k, v).flatten(2)


def each_query(m, q, k, v):
    """The keys are closed over; one query at a time."""
    rows = torch.vmap(lambda a: (k[0] @ a).softmax(0) @ v[0])(q[0])
    return rows[None]


def by_hand(m, q, k, v):
    def one(a, b, c):
        e = torch.exp(a @ b.T - (a @ b.T).amax(-1, keepdim=True))
        return (e / e.sum(-1, keepdim=True)) @ c

    return torch.vmap(one)(q, k, v)


def with_projections(m, q, k, v):
    return torch.vmap(lambda y: (m.q(y) @ m.k(y).T).softmax(-1) @ m.v(y))(q)


OPENED = [product, product_of_letters, both_products, whole, heads, each_query, by_hand]
OPENED += [with_projections]


def made(core):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Mapped(core).eval().double()
    return model, torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("core", OPENED)
@pytest.mark.parametrize("form", ["softmax", "relu"])
def test_it_is_a_site_with_the_results_and_gradients_of_eager(core, form):
    model, x = made(core)
    (site,) = attnpass.find_sites(model, x).sites
    exact = form == "softmax" or core is by_hand
    want = model(x) if exact else exchanged(model, form, x)
    options = {"form": form, "inner": "aot_eager", "strict": True}
    got = torch.compile(model, backend="attnpass", options=options)(x)
    if core is by_hand and form == "relu":
        assert error([got], [want]) > 1e-3  # softmax by hand is not exchanged in the reference
        return
    leaves = [x, *(p for p in model.parameters())]
    grads = [torch.autograd.grad(y.sin().sum(), leaves, allow_unused=True) for y in (got, want)]
    pairs = [(a, b) for a, b in zip(*grads, strict=True) if b is not None]
    assert all((a is None) == (b is None) for a, b in zip(*grads, strict=True))
    # a form that stands for all of it holds log n in float32
    bound = BOUND if form == "softmax" or site.degree == "logits" else 1e-6
    assert error([got], [want]) < bound
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


def fused(m, q, k, v):
    return torch.vmap(lambda *one: F.scaled_dot_product_attention(*(y[None] for y in one)))(
        q, k, v
    )[:, 0]


def dropped(m, q, k, v):
    def one(a, b, c):
        return F.dropout((a @ b.T).softmax(-1), 0.5) @ c

    return torch.vmap(one, randomness="different")(q, k, v)


def written(m, q, k, v):
    def one(a, b, c):
        s = a @ b.T
        s.mul_(0.5)
        return s.softmax(-1) @ c

    return torch.vmap(one)(q, k, v)


def switched(m, q, k, v):
    def one(a, b, c):
        with torch.no_grad():
            p = (a @ b.T).softmax(-1)
        return p @ c

    return torch.vmap(one)(q, k, v)


def differentiated(m, q, k, v):
    def energy(a, b, c):
        return ((a @ b.T).softmax(-1) @ c).sum()

    return torch.vmap(torch.func.grad(energy))(q, k, v)


def seeded(run, x):
    torch.manual_seed(1)
    return run(x)


@pytest.mark.parametrize("core", [fused, dropped, written, switched, differentiated])
def test_what_cannot_be_known_is_kept_and_named(core):
    model, x = made(core)
    model.train()  # gradients are recorded, else none are switched
    report = attnpass.find_sites(model, x)
    assert not report.sites
    assert {d.code for d in report.declined} == {"HOP_UNSUPPORTED"}
    assert all("inside vmap" in d.hint for d in report.declined)
    options = {"form": "sigmoid", "inner": "eager"}
    compiled = torch.compile(model, backend="attnpass", options=options)
    got, want = (seeded(f, x) for f in (compiled, model))
    assert error([got], [want]) < BOUND
    grads = [torch.autograd.grad(y.sin().sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_logits_that_come_out_of_a_kept_region_are_named():
    def core(m, q, k, v):
        def one(a, b):
            s = a @ b.T
            s.mul_(0.5)
            return s

        return torch.vmap(one)(q, k).softmax(-1) @ v

    model, x = made(core)
    (declined,) = attnpass.find_sites(model, x).declined
    assert declined.code == "HOP_UNSUPPORTED" and "come out of vmap" in declined.hint


def test_at_every_size():
    model, x = made(product)
    options = {"form": "sigmoid", "inner": "eager", "strict": True}
    run = torch.compile(model, backend="attnpass", options=options, dynamic=True)
    with torch.no_grad():
        for sizes in ((3, 5), (2, 7), (4, 3)):
            x = torch.randn(*sizes, 8, dtype=torch.float64)
            assert error([run(x)], [exchanged(model, "sigmoid", x)]) < 1e-6
