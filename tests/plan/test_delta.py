"""A delta: ``W + delta`` as if it were the weight, from a buffer where nothing changed."""

from __future__ import annotations

import copy
import pickle

import torch
from deltas import changed, model
from torch import nn

from attnpass.plan.delta import Delta


def test_low_rank_gradients_are_those_of_the_sum():
    weight = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    delta = Delta(weight.shape, 2).double()
    delta.left.data.normal_()
    assert torch.autograd.gradcheck(
        lambda w, a, b: torch.func.functional_call(delta, {"left": a, "right": b}, (w,)),
        (weight, delta.left, delta.right),
    )


def test_a_delta_starts_at_nothing_and_is_full_where_that_is_less():
    weight = torch.randn(8, 16)
    assert torch.equal(Delta(weight.shape, 2, seed=3)(weight), weight)
    assert Delta(weight.shape, 5).right.shape == (5, 16)
    assert Delta(weight.shape, 6).full is not None  # 6 (8 + 16) numbers would be more
    assert Delta(torch.Size([16]), 1).full is not None


def test_half_precision_weights_are_summed_in_float32():
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    delta = Delta(weight.shape)
    delta.full.data.fill_(1 / 256 + 1 / 1024)
    assert delta(weight).dtype == torch.bfloat16
    assert torch.equal(delta(weight), (weight.float() + delta.full).bfloat16())


def test_another_weight_at_the_same_address_is_another_weight():
    delta = Delta(torch.Size([64, 64]))
    with torch.no_grad():
        for i in range(20):
            weight = nn.Parameter(torch.full((64, 64), float(i)))
            assert torch.equal(delta(weight), weight.detach())
            del weight


def test_plans_with_buffers_can_be_copied_and_pickled():
    net = model()
    plan = changed(net)
    delta = plan.deltas["blocks.0.attn"]["blocks.0.attn.qkv.weight"]
    with torch.no_grad():
        want = delta(net.blocks[0].attn.qkv.weight)
        for other in (pickle.loads(pickle.dumps(delta)), copy.deepcopy(delta)):
            assert torch.equal(other(net.blocks[0].attn.qkv.weight), want)
    assert plan.copy().hash == plan.hash
