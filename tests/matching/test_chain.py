"""The walk from a softmax up to its product and down to the values, and why it may end."""

import pytest
import torch
import torch.nn.functional as F
from tracing import code_of, only, shapes, site_of, traced

from attnpass.matching import Refuse, reached
from attnpass.matching.chain import chains

Q, K, V = shapes()
W = torch.randn(7, 4, dtype=torch.float64)


def plain(q, k, v):
    return ((q @ k.mT) * 0.5).softmax(-1) @ v


def chain_of(function, *inputs):
    gm = traced(function, *inputs)
    (found,) = chains(only(gm, "softmax"))
    return found, gm


def test_both_products_and_what_stands_between():
    found, gm = chain_of(plain, Q, K, V)
    first, second = (n for n in gm.graph.nodes if "matmul" in str(n.target))
    assert found.scores.node is first and found.output.node is second
    assert (found.dim, found.after, found.dropout, found.escapes) == (-1, [], 0.0, [])


def test_dropout_and_copies_on_the_weights_are_passed():
    def run(q, k, v):
        return F.dropout((q @ k.mT).softmax(-1), 0.25, True).to(torch.float64).clone() @ v

    found, gm = chain_of(run, Q, K, V)
    assert found.dropout == 0.25
    assert only(gm, "dropout") in found.after


def test_the_axis_of_softmax_counts_from_the_end():
    found, _ = chain_of(lambda q, k, v: F.softmax(q @ k.mT, dim=3) @ v, Q, K, V)
    assert found.dim == -1


def test_who_else_reads_the_weights_is_noted():
    def weights(q, k, v):
        p = (q @ k.mT).softmax(-1)
        return p @ v, p.sum()

    def logits(q, k, v):
        s = q @ k.mT
        return s.softmax(-1) @ v, s.mean()

    found, gm = chain_of(weights, Q, K, V)
    assert found.escapes == [only(gm, "sum")]
    # logits are what they were, whatever is made of them
    assert chain_of(logits, Q, K, V)[0].escapes == []


def test_a_read_of_the_shape_alone_is_no_escape():
    def run(q, k, v):
        p = (q @ k.mT).softmax(-1)
        return p @ v, torch.zeros_like(p)

    assert chain_of(run, Q, K, V)[0].escapes == []


def test_every_product_that_logits_may_come_from_is_offered():
    """A sum of two products: either may be the attention, the other is then a bias."""
    gm = traced(lambda q, k, v: (q @ k.mT + (q * 2) @ k.mT).softmax(-1) @ v, Q, K, V)
    assert len([x for x in reached(only(gm, "softmax")) if not isinstance(x, Refuse)]) == 2


def pooled(q, k, v):
    return q.mean(-1, keepdim=True).softmax(-2).mT @ v[..., :5, :]


def gated(q, k, v):
    return ((q @ k.mT).softmax(-1) * 2) @ v


def weights_alone(q, k, v):
    return (q @ k.mT).softmax(-1) + 1


def gradients_switched(q, k, v):
    with torch.no_grad():
        p = (q @ k.mT).softmax(-1)
    return p @ v


def written_view(q, k, v):
    """A write with an operand of another dtype has no functional twin and stays in the graph."""
    s = q @ k.mT
    same = s.mT.mT
    s.mul_(torch.full((), 2.0, dtype=torch.float32))
    return same.softmax(-1) @ v


CODES = {
    "pooling": (pooled, "NOT_ATTENTION:pooling"),
    "gate": (gated, "NOT_ATTENTION:gate"),
    "no-values": (weights_alone, "NOT_ATTENTION:gate"),
    "unknown": (lambda q, k, v: (q @ k.mT).sinh().softmax(-1) @ v, "UNKNOWN_SCORE_OP:sinh"),
    "switched": (gradients_switched, "HOP_UNSUPPORTED"),
    "written": (written_view, "MUTATED_ALIAS"),
}


@pytest.mark.parametrize("name", CODES)
def test_a_walk_that_ends_says_why(name):
    function, code = CODES[name]
    assert code_of(function, Q, K, V) == code


def test_softmax_of_a_projection_is_a_router():
    found = code_of(lambda q, v, w: F.linear(q, w).softmax(-1) @ v, Q, V, W, weights=1)
    assert found == "NOT_ATTENTION:router"


def test_logits_that_are_an_input_came_from_another_graph():
    logits = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    assert code_of(lambda s, v: s.softmax(-1) @ v, logits, V) == "CROSS_GRAPH"


def test_steps_in_the_way_are_no_obstacle():
    site = site_of(plain, Q, K, V)
    assert (site.heads, site.head_dim, site.scale) == (3, 4, 0.5)
