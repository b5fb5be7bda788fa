"""The projections, the block's output and the grid of patches around an attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tracing import holders, only, traced

from attnpass.matching.factors import Factor
from attnpass.matching.facts import GraphFacts
from attnpass.matching.surroundings import block_output, patch_grid, projection_weights

X, W = torch.ones(2, 5, 6), torch.ones(6, 6)


def facts_of(function, *inputs, weights):
    gm = traced(function, *inputs)
    given = holders(gm)
    return gm, GraphFacts.of(gm.graph, set(given[len(given) - weights :]))


def test_the_block_ends_behind_its_projection():
    def block(x, w, o):
        return F.linear(F.linear(x, w).exp(), o) + x

    gm, facts = facts_of(block, X, W, W, weights=2)
    x, _, o = holders(gm)
    rows = facts.axes[x][1]
    out, weights = block_output(facts, only(gm, "exp"), rows)
    assert out is not None and out.args[0] is only(gm, "exp") and weights == (o,)


def test_a_result_that_two_read_has_no_block():
    def block(x, w, o):
        y = F.linear(x, w).exp()
        return F.linear(y, o) + y

    gm, facts = facts_of(block, X, W, W, weights=2)
    rows = facts.axes[holders(gm)[0]][1]
    assert block_output(facts, only(gm, "exp"), rows) == (None, ())


def test_weights_come_in_order_and_stop_at_the_projection():
    def made(x, w, u, b):
        return F.linear(F.linear(x, w), u, b[0]).exp()

    gm, facts = facts_of(made, X, W, W, torch.ones(1, 6), weights=3)
    _, _, u, b = holders(gm)
    found = projection_weights(facts, [only(gm, "exp")])
    assert set(found) == {u, b}, "the first layer belongs to another block"


def test_a_grid_is_two_axes_of_tokens_behind_whole_tokens():
    rows, columns = Factor("rows", 3, "token"), Factor("columns", 4, "token")
    assert patch_grid((rows, columns)) == ((3, 4), 0)
    assert patch_grid((rows,)) == (None, 0)
    assert patch_grid((rows, Factor("d", 4, "feature"))) == (None, 0)
    first = (Factor("class", 2, "param"),)
    joined = Factor("cat", 14, "token", (first, (rows, columns)))
    assert patch_grid((joined,)) == ((3, 4), 2)
