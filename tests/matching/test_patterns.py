"""Patterns of masks that no input reaches: each one, its nearest impostor, and what stays open."""

from __future__ import annotations

import random

import pytest
import torch
from tracing import result, traced

from attnpass.matching.patterns import _pattern as drawn
from attnpass.matching.patterns import constant_pattern, only_masks
from attnpass.matching.recipe import Recipe
from attnpass.torch_internals import expression

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


def test_too_many_tokens_are_proven_instead_of_computed():
    assert pattern(lambda: below(5000, 5000), 5000, 5000) == "causal"
    assert pattern(lambda: torch.arange(5000) % 2 == 0, 5000, 5000) == "arbitrary"


def test_only_masks():
    def term(make):
        gm = traced(lambda x: (make(), x + 1), torch.ones(1))
        return only_masks(Recipe(result(gm)[0]), (T, T))

    zeros = lambda: torch.zeros(T, T)  # noqa: E731
    assert term(lambda: zeros().masked_fill(~below(), -torch.inf))
    assert not term(lambda: zeros().masked_fill(~below(), -1e9))
    assert not term(lambda: zeros() + 1.0)


def by_size(make, sizes=(2, 3, 5, 7, 8, 19, 40, 127, 128, 129, 200)):
    """What is claimed of a mask of symbolic size, and what it is at each size it can have."""
    gm = traced(lambda x: make(x.shape[0]), torch.ones(9, 3), mode="symbolic")
    (x,) = gm.graph.find_nodes(op="placeholder")
    t = x.meta["val"].shape[0]
    claimed = constant_pattern(Recipe(result(gm)), (t, t))
    within = [n for n in sizes if n <= upper(t)]
    return claimed, {drawn(make(n).bool(), n, n) for n in within}


def upper(size):
    """The largest value that the guards of a trace allow for a size."""
    found = size.node.shape_env.var_to_range.get(expression(size))
    return float("inf") if found is None else found.upper


def columns(n):
    return torch.arange(n)


def distance(n):
    return torch.arange(n)[:, None] - torch.arange(n)


PROVEN = {
    "causal, tril": lambda n: below(n, n),
    "causal, triu of a float": lambda n: torch.full((n, n), -torch.inf).triu(1) == 0,
    "causal, positions": lambda n: columns(n)[:, None] >= columns(n),
    "causal, strictly before the next": lambda n: columns(n).view(-1, 1) + 1 > columns(n)[None],
    "causal, difference": lambda n: distance(n) >= 0,
    "causal, float positions": lambda n: columns(n).float()[:, None] >= columns(n).float(),
    "causal, for all heads": lambda n: (distance(n) >= 0)[None, None].expand(2, 3, n, n),
    "causal, cut out of a larger one": lambda n: below(n + 7, n + 7)[7 : n + 7, 7 : n + 7],
    "causal, turned": lambda n: torch.ones(n, n, dtype=torch.bool).triu().transpose(0, 1),
    "causal, and in range": lambda n: below(n, n) & (columns(n) < n),
    "causal, or before the first": lambda n: below(n, n) | (columns(n) < 0),
    "causal, selected": lambda n: torch.where(distance(n) >= 0, 1.0, 0.0),
    "causal, steps of two": lambda n: (
        torch.arange(0, 2 * n, 2)[:, None] >= torch.arange(0, 2 * n, 2)
    ),
    "all, in range": lambda n: (columns(n) < n).expand(n, n),
    "all, no distance is so large": lambda n: distance(n).abs() < n,
}


@pytest.mark.parametrize("name", PROVEN)
def test_a_pattern_of_a_symbolic_size_is_proven(name):
    claimed, found = by_size(PROVEN[name])
    assert {claimed} == found == {name.split(",")[0]}


SHIFTING = {
    "window": lambda n: below(n, n).triu(-127),
    "window by distance": lambda n: distance(n).abs() < 100,
    "window that a tensor holds": lambda n: distance(n).abs() < torch.tensor(100),
    "window of a share": lambda n: distance(n) * 2 < n,
    "sink": lambda n: below(n, n).triu(-100) | (columns(n) < 1),
    "sink, causal": lambda n: (below(n, n).triu(-100) | (columns(n) < 1)) & below(n, n),
    "prefix": lambda n: below(n, n) | (columns(n) < 30),
    "chunks": lambda n: (columns(n) // 50)[:, None] == columns(n) // 50,
    "chunks, causal": lambda n: below(n, n) & ((columns(n) // 50)[:, None] == columns(n) // 50),
    "half positions": lambda n: columns(n).half()[:, None] >= columns(n).half(),
    "bytes": lambda n: columns(n).to(torch.int8)[:, None] >= columns(n).to(torch.int8),
    "linspace": lambda n: torch.linspace(0, 130, n)[:, None] + 1 > columns(n),
    "alpha": lambda n: torch.sub(columns(n)[:, None], columns(n), alpha=2) >= 0,
    "size decides": lambda n: distance(n) * (n - 100) >= 0,
    "every other": lambda n: below(n, n) & (columns(n) != 130),
    "cut with an offset": lambda n: below(n + 7, n + 7)[7 : n + 7, :n],
}


@pytest.mark.parametrize("name", SHIFTING)
def test_a_pattern_that_changes_with_the_size_is_not_claimed(name):
    # a window is applied at run time as an arbitrary mask is: the name changes nothing
    assert by_size(SHIFTING[name])[0] in ("arbitrary", "window")


def random_mask(rng):
    """A random mask of positions and sizes, as a function of the size, and its text."""
    number = lambda: rng.choice((0, 0, 1, 1, 2, 5, 30, 100, 127))  # noqa: E731
    left = rng.choice(("i", "j", "(i - j)", "(j - i)", "(i - j).abs()", f"(i + {number()})"))
    right = rng.choice(("j", "i", str(number()), "n", f"min(n, {number()})", f"(j + {number()})"))
    text = f"({left} {rng.choice(('>=', '>', '<', '<=', '==', '!='))} {right})"
    if rng.random() < 0.3:
        text = f"~{text}"
    if rng.random() < 0.6:
        text = f"({text} {rng.choice('&|')} {random_mask(rng)})"
    return text


@pytest.mark.parametrize("seed", range(150))
def test_no_claim_about_a_random_mask_is_wrong(seed):
    text = random_mask(random.Random(seed))
    made = eval(f"lambda n, i, j, min: ({text}) & (i == i) & (j == j)")

    def mask(n):
        least = min if isinstance(n, int) else torch.sym_min
        return made(n, torch.arange(n)[:, None], torch.arange(n), least)

    claimed, found = by_size(mask)
    assert claimed in ("arbitrary", "window") or found == {claimed}, text


def test_only_masks_of_a_symbolic_size():
    def term(make):
        gm = traced(lambda x: make(x.shape[0]), torch.ones(9, 3), mode="symbolic")
        (x,) = gm.graph.find_nodes(op="placeholder")
        t = x.meta["val"].shape[0]
        return only_masks(Recipe(result(gm)), (t, t))

    assert term(lambda n: torch.full((n, n), -torch.inf).triu(1))
    assert not term(lambda n: torch.full((n, n), -1e9).triu(1))
    assert not term(lambda n: torch.zeros(n, n) + n)
