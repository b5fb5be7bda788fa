"""Layouts: leading axes, transposes taken in, groups of key/value heads."""

import pytest
import torch
import torch.nn.functional as F
from models.modules import Mapped
from torch import randn
from tracing import axes_of, holders, only, result, traced

from attnpass.graph import op_name
from attnpass.matching.layout import SHARED, Lead, Operand, absorb, lead_of, ungrouped

H, D = 3, 4
X = randn(2, 5, 8)
W = randn(12, 8)


def split(x, w):
    """[B, T, H, d]"""
    return F.linear(x, w).unflatten(-1, (H, D))


def lead(function, count, sizes=None):
    """The leading axes of what ``function`` makes of tokens and a projection."""
    found, _, gm = axes_of(function, X, W, weights=1)
    shape = list(result(gm).meta["val"].shape)
    return lead_of(found[:count], sizes or shape[:count])


def test_heads_are_the_axis_that_a_projection_made():
    assert lead(lambda x, w: split(x, w).transpose(1, 2), 2) == Lead(2, (0, 1), H, True)


def test_heads_in_front_of_the_batch_are_found():
    assert lead(lambda x, w: split(x, w).permute(2, 0, 1, 3), 2) == Lead(2, (1, 0), H, True)


def test_batch_and_heads_in_one_axis_are_split_at_the_projection():
    flat = lead(lambda x, w: split(x, w).transpose(1, 2).flatten(0, 1), 1)
    assert flat == Lead(1, (0,), H, False)


def test_batch_and_heads_in_one_axis_beside_others():
    found = lead(lambda x, w: split(x, w).transpose(1, 2).flatten(0, 1).unsqueeze(1), 2)
    assert found.split == 0 and found.heads == H and found.order == (0, 1)


def test_without_heads_there_is_one():
    assert lead(F.linear, 1) == Lead(1, (0,), 1, False)
    assert lead_of([], []) == Lead(0, (), 1, False)


def test_graph_inputs_follow_the_convention_batch_then_heads():
    found, _, _ = axes_of(lambda x: x * 1, randn(2, 3, 5, 4))
    assert lead_of(found[:2], [2, 3]) == Lead(2, (0, 1), 3, True)


def test_heads_of_unknown_number_are_no_heads():
    found = lead(lambda x, w: split(x, w).transpose(1, 2), 2, sizes=[2, None])
    assert (found.heads, found.paired) == (1, False)


def test_transposes_are_taken_in():
    gm = traced(lambda x: x.transpose(1, 2).permute(0, 1, 3, 2).mT * 2, randn(2, 5, 3, 4))
    operand = only(gm, "mul").args[0]
    node, order = absorb(operand, (0, 1, 2, 3), only(gm, "mul"))
    assert node is holders(gm)[0] and order == (0, 2, 1, 3)


def test_an_axis_shared_by_all_heads_stays_shared():
    gm = traced(lambda x: x.mT * 2, randn(2, 5, 4))
    node, order = absorb(only(gm, "mT"), (0, SHARED, 1, 2), only(gm, "mul"))
    assert node is holders(gm)[0] and order == (0, SHARED, 2, 1)


def test_a_view_ends_what_is_taken_in():
    gm = traced(lambda x: x.reshape(8, 5).transpose(0, 1) * 2, randn(2, 4, 5))
    node, order = absorb(only(gm, "transpose"), (0, 1), only(gm, "mul"))
    assert op_name(node) in ("view", "reshape", "_unsafe_view") and order == (1, 0)


PAIRED = Lead(2, (0, 1), 6, True)


def grouped(function):
    gm = traced(lambda x: function(x) * 1.0, randn(2, 3, 5, 4))
    operand = Operand(only(gm, "mul").args[0], (0, 1, 2, 3), PAIRED)
    found, group = ungrouped(operand)
    return found, group, operand, holders(gm)[0]


def expanded(x, at=2):
    b, g, s, d = x.shape
    return x.unsqueeze(at).expand(b, g, 2, s, d).reshape(b, g * 2, s, d)


@pytest.mark.parametrize(
    "function",
    [lambda x: x.repeat_interleave(2, 1), expanded, lambda x: expanded(x, -3)],
    ids=["interleave", "expand", "expand-from-the-end"],
)
def test_repeated_heads_are_undone(function):
    found, group, _, source = grouped(function)
    assert group == 2 and found.node is source


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.repeat(1, 2, 1, 1),
        lambda x: x.repeat_interleave(2, 0),
        lambda x: x.unsqueeze(1).expand(2, 2, 3, 5, 4).reshape(2, 6, 5, 4),
        lambda x: x[:, :, :1].expand(2, 3, 10, 4),
    ],
    ids=["tiled", "batch", "groups-outside", "tokens"],
)
def test_other_repetitions_are_no_groups(function):
    """Tiled heads are in another order: query head i does not read head i // 2 there."""
    found, group, operand, _ = grouped(function)
    assert group == 1 and found is operand


def test_transposes_without_gradients_stay_so():
    def core(m, q, k, v):
        with torch.no_grad():
            k = k.transpose(-1, -2)
        return (q @ k).softmax(-1) @ v

    model = Mapped(core).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    options = {"form": "softmax", "inner": "eager"}
    run = torch.compile(model, backend="attnpass", options=options)
    (want,) = torch.autograd.grad(model(x).square().sum(), model.qkv.weight)
    (got,) = torch.autograd.grad(run(x).square().sum(), model.qkv.weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
