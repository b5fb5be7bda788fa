"""Where every axis of every tensor comes from, through whole functions."""

import torch
import torch.nn.functional as F
from torch import randn
from tracing import axes_of, holders, traced

from attnpass.matching.axes import AxisTracer
from attnpass.matching.factors import kinds


def test_inputs_and_parameters_are_what_they_are():
    _, (x, w), _ = axes_of(F.linear, randn(2, 1, 4), randn(5, 4), weights=1)
    assert [kinds(a) for a in x] == [{"input"}, set(), {"input"}]
    assert [kinds(a) for a in w] == [{"param"}, {"param"}]


def test_batch_and_heads_merged_stay_known():
    """[B, T, H d] to [B H, T, d]: the first axis is (input, feature), the last a feature."""

    def heads(x, w):
        q = F.linear(x, w).unflatten(-1, (2, 3)).transpose(1, 2)
        return q.reshape(8, 5, 3)

    found, (x, _), _ = axes_of(heads, randn(4, 5, 8), randn(6, 8), weights=1)
    assert [[f.kind for f in axis] for axis in found] == [
        ["input", "feature"],
        ["input"],
        ["feature"],
    ]
    assert found[0][0] == x[0][0] and found[1] == x[1]
    assert found[0][1].size == 2 and found[2][0].size == 3


def test_equal_sizes_are_never_confused():
    def product(x, w, u):
        return F.linear(x, w) @ F.linear(x, u).mT

    found, (x, _, _), _ = axes_of(product, randn(4, 4, 4), randn(4, 4), randn(4, 4), weights=2)
    assert found == (x[0], x[1], x[1])


def test_an_elementwise_operator_takes_the_surer_axis():
    found, (x, y, w), _ = axes_of(
        lambda x, y, w: F.linear(x, w) + y, randn(2, 3, 4), randn(3, 5), randn(5, 4), weights=1
    )
    assert found[0] == x[0] and kinds(found[2]) == {"feature"} and len(found[1]) == 1


def test_a_broadcast_axis_is_named_by_the_operand_that_has_it():
    found, (x, y), _ = axes_of(lambda x, y: x * y, randn(2, 1, 4), randn(3, 1))
    assert found == (x[0], y[0], x[2])


def test_an_operator_without_a_rule_makes_unknown_axes():
    found, _, _ = axes_of(lambda x: torch.linalg.inv(x), randn(2, 3, 3))
    assert [kinds(a) for a in found] == [{"unknown"}] * 3


def test_constants_of_the_graph_are_parameters():
    gm = traced(lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), randn(2, 3, 4))
    known = AxisTracer(gm.graph, set()).axes
    found = [axes for node, axes in known.items() if node.op == "get_attr"]
    assert found and all(kinds(a) == {"param"} for axes in found for a in axes)
    assert len(holders(gm)) == 1


def test_symbolic_sizes_split_and_merge():
    def heads(x, w):
        y = F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2)
        return y.flatten(0, 1).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)

    found, (x, _), _ = axes_of(heads, randn(3, 5, 8), randn(8, 8), weights=1, mode="symbolic")
    assert found[:2] == x[:2] and kinds(found[2]) == {"feature"}
