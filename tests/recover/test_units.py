"""Sizes that learning rates are relative to."""

from __future__ import annotations

import math

import pytest
import torch
from recovery_problems import data, model, planned
from torch import nn

from attnpass import Capture, Plan
from attnpass.plan import Delta, Entry
from attnpass.recover.distillation import add_deltas
from attnpass.recover.options import DistilOptions
from attnpass.recover.units import trained_unit


def test_wider_weights_learn_more_slowly():
    names = ["blocks.0.attn"]
    sizes = []
    for width in (64, 256):
        weights = {"w": torch.full((8, width), 0.5)}
        plan = Plan({names[0]: Entry("sigmoid", {}, "", "")})
        plan.deltas = {names[0]: {"w": Delta(weights["w"].shape, None)}}
        sizes.append(trained_unit(plan, names, weights).trained[0].size)
    assert sizes == pytest.approx([0.5, 0.25])


def plan_with(form: str, **values: nn.Parameter) -> Plan:
    plan = Plan({"a": Entry(form, {}, "", "")})
    plan.values = {"a": values}
    return plan


def test_a_unit_holds_what_is_not_frozen():
    gain, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2), requires_grad=False)
    plan, weights = plan_with("sigmoid", gain=gain, b=b), {"w": torch.full((8, 16), 2.0)}
    plan.deltas = {"a": {"w": Delta(weights["w"].shape, 2)}}
    unit = trained_unit(plan, ["a", "not in the plan"], weights)
    left, right = plan.deltas["a"]["w"].left, plan.deltas["a"]["w"].right
    assert [id(p) for p in unit.parameters] == [id(p) for p in (gain, left, right)]
    assert [t.delayed for t in unit.trained] == [False, True, True]
    sizes = [t.size for t in unit.trained]
    own = float(right.detach().square().mean().sqrt())
    assert sizes == pytest.approx([1.0, 2.0 * math.sqrt(16 / 2), own])


def test_parameters_that_start_at_zero_have_a_size():
    vector, matrix = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2, 256))
    for form, sizes in (("sigmoid", [0.02, 0.3]), ("skipat", [0.01, 0.02])):
        unit = trained_unit(plan_with(form, v=vector, m=matrix), ["a"], {})
        assert [t.size for t in unit.trained] == pytest.approx(sizes)


def test_a_plan_that_was_stored_gives_the_same_order_as_one_just_made(tmp_path):
    net = model()
    weights = {
        p: w for x in Capture(net).trace(data()).projections().values() for p, w in x.items()
    }
    plan = planned(net, "skipat")
    add_deltas(Capture(net).trace(data()), plan, DistilOptions(rank=2, softmax=True))
    stored = Plan.load(plan.save(tmp_path / "plan.json"))
    units = [trained_unit(p, plan.sites, weights) for p in (plan, stored)]
    names, places = (
        [[getattr(t, x) for t in u.trained] for u in units] for x in ("name", "place")
    )
    assert names[0] == names[1] and len(set(names[0])) == len(names[0]) > 7
    assert places[0] != places[1], "the plans hold them in other orders"
    for a, b in zip(*(u.parameters for u in units), strict=True):
        assert torch.equal(a, b)
