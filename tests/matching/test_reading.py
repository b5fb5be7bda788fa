"""One attention as it stands: operands with layouts, and the numbers that a layout keeps."""

from __future__ import annotations

import pytest
import torch
from tracing import code_of, only, proven, shapes, site_of, traced

from attnpass.matching.chain import chains
from attnpass.matching.facts import GraphFacts
from attnpass.matching.reading import eager_reading, fused_reading
from attnpass.matching.refuse import Refuse


def eager(q, k, v):
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def fused(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_operands_are_the_tensors_of_the_graph():
    gm = traced(eager, *shapes())
    q, k, v = gm.graph.find_nodes(op="placeholder")
    (chain,) = chains(only(gm, "softmax"))
    found = eager_reading(GraphFacts.of(gm.graph, set()), chain)
    assert (found.q.node, found.k.node, found.v.node) == (q, k, v)
    assert found.q.permutation == found.k.permutation == (0, 1, 2, 3), "the transpose is taken in"
    assert found.logits.scale == 0.5 and not found.mixed and not found.sink
    assert found.out.node.args[1] is v


def test_the_fused_operator_is_read_in_any_call_shape():
    gm = traced(fused, *shapes())
    node = only(gm, "scaled_dot_product_attention")
    found = fused_reading(GraphFacts.of(gm.graph, set()), node)
    assert found.out.node is node and found.softmax is None
    assert found.logits.scale == pytest.approx(0.5)
    assert found.dropout == 0.0 and found.escapes == ()


def test_sides_follow_softmax_and_not_the_order_of_operands():
    def turned(q, k, v):
        return (k @ q.transpose(-2, -1)).softmax(-2).transpose(-2, -1) @ v

    site = site_of(turned, *shapes())
    assert (site.query_len, site.key_len) == (5, 7)


def test_keys_without_heads_are_shared():
    def one_head(q, k, v):
        weights = torch.einsum("bhtd,bsd->bhts", q, k[:, 0]).softmax(-1)
        return torch.einsum("bhts,bsd->bhtd", weights, v[:, 0])

    (site,) = (r.site for r in proven(one_head, *shapes()).regions)
    assert site.kv_heads == 1 or site.degree == "logits"


def test_impostors_are_refused():
    def squared(q, k, v):
        p = (q @ k.transpose(-2, -1)).softmax(-1)
        return (p @ p.transpose(-2, -1)) @ q

    def over_rows(q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-1).transpose(-2, -1) @ q

    assert code_of(squared, *shapes()) == "NOT_ATTENTION:product"
    assert code_of(over_rows, *shapes()) == "AXIS_NOT_TOKEN"


def test_a_symbolic_head_dim_is_refused():
    gm = traced(fused, *shapes(), mode="symbolic")
    node = only(gm, "scaled_dot_product_attention")
    with pytest.raises(Refuse, match="symbolic") as refused:
        fused_reading(GraphFacts.of(gm.graph, set()), node)
    assert refused.value.condition == "reading 1"
