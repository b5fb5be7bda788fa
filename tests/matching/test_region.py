"""A region: the nodes of one attention that a rewrite needs, and where its weights are."""

import torch
import torch.nn.functional as F
from tracing import holders, only, proven, traced

from attnpass.matching.verdicts import match

MAKE = torch.Generator().manual_seed(1)
X = torch.randn(2, 5, 8, generator=MAKE, dtype=torch.float64)
WEIGHTS = [torch.randn(8, 8, generator=MAKE, dtype=torch.float64) for _ in range(4)]


def heads(x, w):
    return F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2)


def layer(x, q, k, v, o):
    s = heads(x, q) @ heads(x, k).mT * 0.5
    out = s.softmax(-1) @ heads(x, v)
    return x + F.linear(out.transpose(1, 2).flatten(2), o)


def read(function=layer, *, weights=WEIGHTS):
    gm = traced(function, X, *weights)
    given = holders(gm)
    return match(gm.graph, set(given[1:])).regions, gm, given


def test_operands_and_result_are_nodes_of_the_graph():
    (region,), gm, _ = read()
    nodes = set(gm.graph.nodes)
    operands = (region.q, region.k, region.v, region.out, region.weights)
    assert all(x.node in nodes for x in operands)
    assert region.anchor is region.weights.node is only(gm, "softmax")
    assert all(len(x.permutation) == 4 and x.lead.heads == 2 for x in operands)


def test_weights_are_the_placeholders_of_the_projections():
    (region,), _, given = read()
    assert set(region.parameters) == set(given[1:4]) and region.output == (given[4],)
    assert region.site.weights == ((8, 8),) * 3


def test_the_block_ends_behind_the_output_projection():
    (region,), gm, given = read()
    projection = next(n for n in gm.graph.nodes if given[4] in n.all_input_nodes)
    assert region.block_out is projection and region.site.width == 8


def test_without_a_projection_there_is_no_block():
    def bare(x, q, k, v, o):
        return (heads(x, q) @ heads(x, k).mT).softmax(-1) @ heads(x, v)

    (region,), _, _ = read(bare)
    assert (region.block_out, region.output, region.site.width) == (None, (), None)


def twice(x, *weights):
    return layer(layer(x, *weights), *weights)


def test_the_second_block_knows_the_first():
    (one, two), _, _ = read(twice)
    assert one.previous is None and two.previous.site == one.site
    assert one.site.legal["skipat"].code == "CROSS_GRAPH" and two.site.legal["skipat"] is None


def test_a_block_over_other_tokens_is_no_previous_one():
    """The nearest impostor: equal width and length, but rolled positions are other tokens."""

    def rolled(x, *weights):
        return layer(layer(x, *weights).roll(1, 1), *weights)

    (_, two), _, _ = read(rolled)
    assert two.previous is None


def test_a_region_is_rewritten_with_the_same_numbers():
    found = proven(twice, X, *WEIGHTS, weights=4)
    assert [r.site.name for r in found.regions] == ["root", "root#2"]
