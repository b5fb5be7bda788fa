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
    assert names.site("blocks.0", one, p[:2]) == "blocks.0.attn"
    longer = replace(one, query_len=9, key_len=9)
    assert names.site("blocks.0", longer, p[:2]) == "blocks.0.attn"
    assert names.site("", replace(one, name="root"), p[:2]) == "root"


def test_condition_1_anything_else_of_the_same_path_gets_a_number():
    model, one = Stack(2), replace(site(), name="attn")
    names, p = SiteNames(model), list(model.parameters())
    assert names.site("a", one, p[:2]) == "a.attn"
    assert names.site("a", one, p[2:4]) == "a.attn#2", "other parameters"
    assert names.site("a", replace(one, source="other.py:1"), p[:2]) == "a.attn#3"
    assert names.site("a", replace(one, name="attn#2"), p[:2]) == "a.attn#4", "another ordinal"
    assert names.site("a", one, p[2:4]) == "a.attn#2"


def test_condition_2_a_weight_has_the_path_by_which_it_is_called():
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    model["b"] = model["a"]
    names, weight = SiteNames(model), model["a"].weight
    assert names.weight(weight, "b.weight") == "b.weight"
    assert names.weight(weight, "a.weight") == "a.weight"
    assert names.weight(weight, "elsewhere") == "a.weight", "the first of its paths"
    assert names.weight(torch.ones(2), "a.weight") == ""
