"""A product written as a broadcast multiplication and a sum is one einsum in the normal form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tracing import traced

import attnpass
from attnpass.graph import broadcast, op_name

Q, K, V = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))


def names(function, *inputs):
    gm = traced(function, *inputs)
    assert torch.allclose(first(gm(*inputs)), function(*inputs), atol=1e-12)
    return [op_name(node) for node in gm.graph.nodes if node.op == "call_function"]


def first(out):
    return out[0] if isinstance(out, (tuple, list)) else out


def unsqueezed(q, k):
    return (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1)


def indexed(q, k):
    return (k[..., None, :, :] * q[..., :, None, :]).sum(dim=-1)


@pytest.mark.parametrize("spelled", [unsqueezed, indexed])
def test_it_is_an_einsum_of_the_tensors_themselves(spelled):
    found = names(spelled, Q, K)
    assert found.count("einsum") == 1 and not {"mul", "sum", "squeeze"} & set(found)


def test_one_query_or_one_key_is_told_by_the_axis_that_was_put_in():
    for q, k in ((Q[:, :, :1], K), (Q, K[:, :, :1]), (Q[:, :, :1], K[:, :, :1])):
        assert names(unsqueezed, q, k).count("einsum") == 1
        assert names(indexed, q, k).count("einsum") == 1


def test_values_are_summed_over_the_keys():
    w = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    assert "einsum" in names(lambda w, v: (w[..., None] * v[..., None, :, :]).sum(-2), w, V)


@pytest.mark.parametrize(
    "other",
    [
        lambda q, k: (q * q.exp()).sum(-1),  # nothing is broadcast
        lambda q, k: (q[..., :1, :] * k).sum(-1),  # one brings no axis of its own
        lambda q, k: (q[..., None, :] * k[..., None, :, :]).sum(-1, keepdim=True),
        lambda q, k: (q[..., None, :] * k[..., None, :, :]).sum(),
        lambda q, k: (q[..., None, :] * k[..., None, :, :].float()).sum(-1),
        lambda q, k: twice(q[..., None, :] * k[..., None, :, :]),
        lambda q, k: (q[..., None, :] * k[..., None, :, :]).sum(2),  # an axis of one operand
    ],
)
def test_what_is_no_product_or_another_one_stays(other):
    assert "einsum" not in names(other, Q, K)


def twice(map_):
    return map_.sum(-1) + map_.amax(-1)


def test_under_autocast_it_stays():
    """A product would run in another dtype than a multiplication and a sum."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "einsum" not in names(unsqueezed, Q.float(), K.float())


def test_what_a_sum_sums_is_told():
    gm = traced(lambda q, k: (q[..., :1, :] * k).sum(-1), Q, K)
    (node,) = [n for n in gm.graph.nodes if op_name(n) == "sum"]
    a, b, dims = broadcast(node)
    assert (a.meta["val"].shape[-2], b.meta["val"].shape[-2], dims) == (1, 7, [3])
    assert broadcast(a) is None


def test_in_a_region_under_autocast_it_stays():
    def region(q, k):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = unsqueezed(q, k)
        return scores @ k

    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    with torch.no_grad():
        report = attnpass.find_sites(Called(region), q, k)
        assert torch.allclose(
            torch.compile(
                region, backend="attnpass", options={"form": "sigmoid", "inner": "eager"}
            )(q, k),
            region(q, k),
        )
    assert not report.sites


class Called(torch.nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, *given):
        return self.run(*given)


W = torch.randn(4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("spelled", "is_there"),
    [
        (lambda q, k, w: torch.tensordot(q, k[0, 0], dims=([3], [1])), "einsum"),
        (lambda q, k, w: torch.tensordot(q, k, dims=([1, 3], [1, 3])), "einsum"),
        (lambda q, k, w: torch.tensordot(q[0, 0], k[0, 0].t(), dims=1), "einsum"),
        (lambda q, k, w: torch.inner(q[0], k[0]), "einsum"),
        (lambda q, k, w: F.linear(q, F.linear(k[0, 0], w)), "matmul"),
        (lambda q, k, w: torch.addmm(q[0, 0], q[0, 0], F.linear(q[0, 1, :4], w)), "matmul"),
        (
            lambda q, k, w: torch.addmm(
                q[0, 0], q[0, 0], F.linear(q[0, 1, :4], w), alpha=0.5, beta=3
            ),
            "matmul",
        ),
    ],
)
def test_other_spellings_of_products(spelled, is_there):
    found = names(spelled, Q, K, W)
    assert is_there in found and not {"tensordot", "inner", "addmm"} & set(found)
    assert found.count("linear") <= 1


@pytest.mark.parametrize(
    "equation",
    ["bhid,bhjd,bhj->bhij", "bhj,bhid,bhjd->bhij", "bhid,jb,bhjd->bhij", "bhid,bhjd,dj->bhij"],
)
def test_a_factor_among_three_operands_is_multiplied(equation):
    sizes = {"b": 2, "h": 3, "i": 5, "j": 7, "d": 4}
    given = [
        torch.randn([sizes[c] for c in x], dtype=torch.float64)
        for x in equation.partition("->")[0].split(",")
    ]
    found = names(lambda *x: torch.einsum(equation, *x), *given)
    assert found.count("einsum") == found.count("mul") == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda q, k, w: F.linear(q, w),
        lambda q, k, w: F.linear(q, w + w @ w),  # of weights alone
        lambda q, k, w: F.linear(q, F.linear(k[0, 0], w), q[0, 0, 0, :1].expand(7)),
        lambda q, k, w: torch.addmm(q[0, 0], q[0, 0], w),
        lambda q, k, w: torch.einsum("bhid,bhjd,de->bhij", q, k, w),  # of no operand's letters
        lambda q, k, w: torch.einsum("...id,...jd,...j->...ij", q, k, k[..., 0]),
    ],
)
def test_layers_and_other_einsums_stay(other):
    found = names(other, Q, K, W)
    assert {"linear", "addmm", "einsum"} & set(found) and "mul" not in found


def test_products_under_autocast_and_of_what_is_written_stay():
    def written(q, k):
        y = q.exp()
        out = torch.inner(y, k)
        y.add_(1)
        return out + y.sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "inner" in names(torch.inner, Q[0].float(), K[0].float())
    assert "einsum" in names(torch.inner, Q[0], K[0])
    names(written, Q[0], K[0])
