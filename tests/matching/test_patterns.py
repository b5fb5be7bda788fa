"""Patterns of masks that no input reaches: each one, its nearest impostor, and what stays open."""

from __future__ import annotations

import pytest
import torch
from tracing import result, traced

from attnpass.matching.patterns import constant_pattern, only_masks
from attnpass.matching.recipe import Recipe

T = 6


def pattern(make, t=T, s=T):
    """The pattern of a mask made without inputs."""
    gm = traced(lambda x: (make(), x + 1), torch.ones(1))
    node, _ = result(gm)
    return constant_pattern(Recipe(node), (t, s))


def below(t=T, s=T, by=0):
    return torch.ones(t, s, dtype=torch.bool).tril(by)


CASES = {
    "all": lambda: torch.ones(T, T, dtype=torch.bool),
    "causal": below,
    "causal by positions": lambda: torch.arange(T)[None] <= torch.arange(T)[:, None],
    "causal for all heads": lambda: below().expand(2, 3, T, T),
    "window": lambda: below() & ~below(by=-3),
    "window, no longer causal": lambda: below(by=1),
    "arbitrary, one hole": lambda: below() & (torch.arange(T * T).view(T, T) != 6),
    "arbitrary, another head": lambda: torch.stack([below(), below(by=1)]),
    "arbitrary, nothing kept": lambda: torch.zeros(T, T, dtype=torch.bool),
}


@pytest.mark.parametrize("name", CASES)
def test_pattern(name):
    expected = name.split(",")[0].split(" ")[0]
    assert pattern(CASES[name]) == expected


def test_causal_needs_as_many_queries_as_keys():
    assert pattern(lambda: below(4, 6), 4, 6) == "arbitrary"


def test_an_input_decides_so_there_is_no_constant_pattern():
    gm = traced(lambda x: x > 0, torch.ones(T, T))
    assert constant_pattern(Recipe(result(gm)), (T, T)) is None


def test_too_many_tokens_are_not_computed():
    assert pattern(below, 5000, 5000) == "arbitrary"


def test_only_masks():
    def term(make):
        gm = traced(lambda x: (make(), x + 1), torch.ones(1))
        return only_masks(Recipe(result(gm)[0]), (T, T))

    zeros = lambda: torch.zeros(T, T)  # noqa: E731
    assert term(lambda: zeros().masked_fill(~below(), -torch.inf))
    assert not term(lambda: zeros().masked_fill(~below(), -1e9))
    assert not term(lambda: zeros() + 1.0)
