"""Products with values are told from other readers of the weights."""

from __future__ import annotations

import pytest
import torch
from tracing import holders, only, shapes, traced

from attnpass.graph import op_name
from attnpass.matching.facts import GraphFacts
from attnpass.matching.weight_readers import MOST, WeightReaders, is_parameter

Q, K, V = shapes()


def read(function, *inputs, weights=0):
    """Operators of the products that read the weights of the only softmax, and of the rest."""
    gm = traced(function, *inputs)
    given = holders(gm)
    facts = GraphFacts.of(gm.graph, set(given[len(given) - weights :]))
    found = WeightReaders.of(facts, only(gm, "softmax"), 3)
    return [op_name(p.node) for p, _ in found.products], [op_name(x) for x in found.escapes]


def weights(q, k):
    return (q @ k.mT).softmax(-1)


@pytest.mark.parametrize(
    ("after", "products", "others"),
    [
        (lambda w, v: w @ v, ["matmul"], []),
        (lambda w, v: (w.sqrt() @ v, w @ v.exp()), ["matmul", "matmul"], []),
        (lambda w, v: (w @ v, w.sum(-1)), ["matmul"], ["sum"]),
        (lambda w, v: (w @ v, w.mean()), ["matmul"], ["mean"]),
        (lambda w, v: (w @ v, w * w), ["matmul"], ["mul"]),
        (lambda w, v: w.flatten(1, 2) @ v[:, 0], ["matmul"], []),
        (lambda w, v: torch.cat([w[..., :3], w[..., 3:]], -1) @ v, ["matmul"], []),
        (lambda w, v: w.mT @ v[:, :, :5], [], [""]),  # over the rows: the graph returns them
    ],
)
def test_readers(after, products, others):
    assert read(lambda q, k, v: after(weights(q, k), v), Q, K, V) == (products, others)


def test_values_that_are_a_table_are_none():
    table = torch.randn(7, 4, dtype=torch.float64)
    assert read(lambda q, k, t: weights(q, k) @ t, Q, K, table, weights=1) == ([], ["matmul"])
    assert read(lambda q, k, t: weights(q, k) @ t, Q, K, table) == (["matmul"], [])


def test_what_a_projection_makes_of_parameters_is_none_unless_asked():
    gm = traced(
        lambda w, u: (w + 1, w @ u, torch.nn.functional.linear(w, u)), *Q[:2, 0].mT @ Q[:2, 0]
    )
    added, product, layer = gm.graph.output_node().args[0]
    facts = GraphFacts.of(gm.graph, set(holders(gm)))
    assert is_parameter(facts, added) and is_parameter(facts, product)
    assert not is_parameter(facts, layer) and is_parameter(facts, layer, made=True)


def test_it_gives_up_after_so_many():
    def long(q, k, v):
        w = weights(q, k)
        for _ in range(MOST + 1):
            w = w.sqrt()
        return w @ v

    assert read(long, Q, K, V)[0] == []
