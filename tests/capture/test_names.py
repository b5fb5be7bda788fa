"""Names of sites and weights: two sites have one name only if they are the same attention."""

from __future__ import annotations

from dataclasses import replace

import torch
from models import Stack
from torch import nn

import attnpass
from attnpass.capture.names import SiteNames


def site():
    (found, *_) = attnpass.find_sites(Stack(1).eval(), torch.randn(2, 5, 24)).sites
    return found


def test_a_site_that_is_met_again_keeps_its_name():
    model, one = Stack(2), replace(site(), name="attn")
    names, p = SiteNames(model), list(model.parameters())
    assert names.site("blocks.0", one, p[:2], names.places, 0) == "blocks.0.attn"
    longer = replace(one, query_len=9, key_len=9)
    assert names.site("blocks.0", longer, p[:2], names.places, 0) == "blocks.0.attn"
    top = replace(one, name="root")
    assert names.site("", top, p[:2], names.places, 0) == "root"


def test_condition_1_anything_else_of_the_same_path_gets_a_number():
    model, one = Stack(2), replace(site(), name="attn")
    names, p = SiteNames(model), list(model.parameters())

    def named(own, site=one, time=0):
        return names.site("a", site, own, names.places, time)

    assert named(p[:2]) == "a.attn"
    assert named(p[2:4]) == "a.attn#2", "other parameters"
    assert named(p[:2], replace(one, source="other.py:1")) == "a.attn#3"
    assert named(p[2:4]) == "a.attn#2"
    assert named(p[2:4], replace(one, name="attn#2")) == "a.attn#2", (
        "the number alone says nothing"
    )


def test_condition_1_exchanged_parameters_are_the_same_site():
    model, one = Stack(2), replace(site(), name="attn")
    names = SiteNames(model)
    before = names.site("a", one, list(model.parameters())[:2], names.places, 0)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    after = names.site("a", one, list(model.parameters())[:2], names.places, 0)
    assert before == after == "a.attn"


def test_condition_2_a_weight_has_the_path_by_which_it_is_called():
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    model["b"] = model["a"]
    names, weight = SiteNames(model), model["a"].weight
    places = names.places
    assert names.weight(weight, "b.weight", places) == "b.weight"
    assert names.weight(weight, "a.weight", places) == "a.weight"
    assert names.weight(weight, "elsewhere", places) == "a.weight", "the first of its paths"
    assert names.weight(torch.ones(2), "a.weight", places) == ""


def test_condition_3_a_layer_that_is_called_twice_is_two_sites():
    class Twice(Stack):
        def forward(self, x):
            return self.blocks[0](self.blocks[0](x))

    sites = attnpass.find_sites(Twice(1).eval(), torch.randn(2, 5, 24)).sites
    assert [s.name for s in sites] == ["blocks.0.attn", "blocks.0.attn#2"]


def test_condition_4_without_parameters_what_is_computed_counts():
    names, one = SiteNames(Stack(1)), replace(site(), name="attn")

    def named(site):
        return names.site("", site, [], {}, 0)

    assert named(one) == "attn" == named(replace(one, query_len=9))
    assert named(replace(one, mask=frozenset({"causal"}))) == "attn#2"
