"""Operators that are other operators in a row are read, and give what eager gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnpass

Q, K, V = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
W = torch.randn(3, 4, 4, dtype=torch.float64)


class Attention(nn.Module):
    """``product`` of projected queries and keys, softmax, values."""

    def __init__(self, product):
        super().__init__()
        self.product = product
        self.weight = nn.Parameter(W.clone())

    def forward(self, q, k, v):
        q, k, v = (F.linear(x, w) for x, w in zip((q, k, v), self.weight, strict=True))
        return self.product(q, k).softmax(-1) @ (v[0, 0] if self.product in FLAT else v)


def rows(q, k):
    return q.unsqueeze(-2), k.unsqueeze(-3)


FLAT = [
    lambda q, k: torch.linalg.multi_dot([q[0, 0], k[0, 0].T]),
    lambda q, k: torch.linalg.multi_dot([q[0, 0], k[0, 0].T]) * 0.5,
]
PRODUCTS = [
    *FLAT,
    lambda q, k: torch.linalg.matmul(q, k.mT),
    lambda q, k: torch.linalg.vecdot(*rows(q, k)),
    lambda q, k: torch.linalg.vecdot(*(x.transpose(-1, -2) for x in rows(q, k)), dim=-2),
    lambda q, k: F.cosine_similarity(*rows(q, k), dim=-1),
    lambda q, k: 8 * F.cosine_similarity(*rows(q, k), dim=4, eps=1e-3),
]


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_each_is_a_whole_attention(product, form):
    model = Attention(product)
    (site,) = attnpass.find_sites(model, Q, K, V).sites
    assert site.degree in ("fused", "block")
    options = {"form": form, "strict": True, "inner": "eager"}
    torch._dynamo.reset()
    run = torch.compile(model, backend="attnpass", options=options)
    if form == "sigmoid":
        assert run(Q, K, V).isfinite().all()
        return
    got, want = run(Q, K, V), model(Q, K, V)
    assert torch.allclose(got, want, atol=1e-12)
    a, b = (torch.autograd.grad(y.square().sum(), model.weight)[0] for y in (got, want))
    assert torch.allclose(a, b, atol=1e-10)


def test_a_vector_shorter_than_eps_has_the_length_eps():
    def product(q, k):
        return F.cosine_similarity(*rows(q, k), dim=-1, eps=2.0)

    model = Attention(product)
    q = Q.clone()
    q[:, :, 1] = 0
    torch._dynamo.reset()
    options = {"form": "softmax", "strict": True, "inner": "eager"}
    got = torch.compile(model, backend="attnpass", options=options)(q, K, V)
    want = model(q, K, V)
    assert torch.allclose(got, want, atol=1e-12)
    a, b = (torch.autograd.grad(y.square().sum(), model.weight)[0] for y in (got, want))
    assert torch.allclose(a, b, atol=1e-10)


def through(function, *given):
    """What a function gives behind an attention that is rewritten."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(PRODUCTS[2])

        def forward(self, q, k, v, *more):
            return self.attention(q, k, v).sum() * 0 + function(*more)

    torch._dynamo.reset()
    options = {"form": "softmax", "strict": True, "inner": "eager"}
    return torch.compile(Model(), backend="attnpass", options=options)(Q, K, V, *given)


@pytest.mark.parametrize(
    "shapes", [((2, 6, 1), (2, 6, 8)), ((2, 6, 8), (2, 1, 8)), ((3, 8), (8,))]
)
def test_cosine_of_tensors_that_are_spread(shapes):
    a, b = (torch.randn(s, dtype=torch.float64) for s in shapes)
    got = through(lambda a, b: F.cosine_similarity(a, b, dim=-1), a, b)
    assert torch.allclose(got, F.cosine_similarity(a, b, dim=-1), atol=1e-12)


def test_cosine_of_vectors_whose_length_overflows():
    a, b = torch.full((2, 4096), 1e36), torch.randn(2, 4096)
    got = through(lambda a, b: F.cosine_similarity(a, b), a, b)
    assert torch.equal(got, F.cosine_similarity(a, b).double())


@pytest.mark.parametrize("product", PRODUCTS[3:4] + PRODUCTS[5:6])
def test_autocast_keeps_its_rule_for_the_whole_operator(product):
    model, given = Attention(product).float(), [x.float() for x in (Q, K, V)]
    torch._dynamo.reset()
    options = {"form": "softmax", "inner": "eager"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.compile(model, backend="attnpass", options=options)(*given)
        assert torch.equal(got, model(*given))
