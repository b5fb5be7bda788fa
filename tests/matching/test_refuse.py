"""A prover's no becomes one decline: stable code, hint, and the node that decided."""

import pytest
from tracing import shapes, traced, unread

from attnpass.matching.verdicts import match

Q, K, V = shapes()


def sinh(q, k, v):
    return (q @ k.mT).sinh().softmax(-1) @ v


def gated(q, k, v):
    return ((q @ k.mT).softmax(-1) * 2) @ v


@pytest.mark.parametrize(
    ("function", "code", "operator"),
    [(sinh, "UNKNOWN_SCORE_OP:sinh", "sinh"), (gated, "NOT_ATTENTION:gate", "softmax")],
)
def test_a_refusal_is_one_decline_at_the_node_that_decided(function, code, operator):
    gm = traced(function, Q, K, V)
    found = match(gm.graph, set())
    (decline,) = unread(r.site for r in found.regions)
    assert found.declined == [] and decline.code == code and decline.hint
    (node,) = (n for n in gm.graph.nodes if n.name == decline.node)
    assert operator in str(node.target)


def test_one_refusal_leaves_other_sites_alone():
    def both(q, k, v):
        return (q @ k.mT).softmax(-1) @ v + sinh(q, k, v)

    found = match(traced(both, Q, K, V).graph, set())
    whole, part = (r.site for r in found.regions)
    assert whole.degree == "fused" and found.declined == []
    assert [d.code for d in unread([part])] == ["UNKNOWN_SCORE_OP:sinh"]
