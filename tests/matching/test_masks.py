"""What a mask is: nothing, causal, padding, window or arbitrary; proven, never named."""

import math

import pytest
import torch
from models import DISTINCT, Attention, scores_of
from tracing import holders, shapes, site_of, traced

import attnpass
from attnpass.matching.masks import conjuncts
from attnpass.matching.recipe import Recipe

INF, LOW = -math.inf, -1e9
Q, K, V = shapes()
SQUARE = shapes(keys=5)
PAD = torch.ones(2, 7, dtype=torch.bool)
PAD[1, 4:] = False
PATTERN = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)) > -0.5
FLOATS = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def low(like):
    return torch.full((), LOW, dtype=like.dtype)


def zero(like):
    return torch.zeros((), dtype=like.dtype)


def added(make):
    """Attention whose logits get ``make(s, *masks)`` added."""

    def run(q, k, v, *masks):
        s = q @ k.mT
        return (s + make(s, *masks)).softmax(-1) @ v

    return run


def facts(site):
    return set(site.mask), site.fill, site.added, site.bias


ADDITIVE = {
    "zeros": (lambda s: torch.zeros(5, 7, dtype=s.dtype), (), (set(), None, False, False)),
    "where": (
        lambda s, m: torch.where(m[:, None, None], zero(s), low(s)),
        (PAD,),
        ({"padding"}, LOW, True, False),
    ),
    "where-inverted": (
        lambda s, m: torch.where(~m[:, None, None], low(s), zero(s)),
        (PAD,),
        ({"padding"}, LOW, True, False),
    ),
    "where-of-a-bias": (
        lambda s, m, b: torch.where(m[:, None, None], b, low(s)),
        (PAD, FLOATS),
        ({"padding"}, LOW, True, True),
    ),
    "masked_fill": (
        lambda s, m: s.new_zeros(2, 1, 1, 7).masked_fill(~m[:, None, None], LOW),
        (PAD,),
        ({"padding"}, LOW, True, False),
    ),
    "masked_fill-of-a-bias": (
        lambda s, m, b: b.masked_fill(~m[:, None, None], LOW),
        (PAD, FLOATS),
        ({"padding"}, LOW, True, True),
    ),
    "one-minus": (
        lambda s, m: (1.0 - m[:, None, None].to(s.dtype)) * LOW,
        (PAD,),
        ({"padding"}, LOW, True, False),
    ),
    "rsub": (
        lambda s, m: torch.rsub(m[:, None, None].to(s.dtype), 1) * LOW,
        (PAD,),
        ({"padding"}, LOW, True, False),
    ),
    "sum-of-two": (
        lambda s, m, b: torch.where(m[:, None, None], zero(s), low(s)) + b,
        (PAD, FLOATS),
        ({"padding"}, LOW, True, True),
    ),
    "cast-and-shape": (
        lambda s, m: torch.where(m, 0.0, LOW).to(s.dtype).view(2, 1, 1, 7),
        (PAD,),
        ({"padding"}, LOW, True, False),
    ),
    "constant": (
        lambda s: torch.full((5, 7), INF, dtype=s.dtype).triu(2),
        (),
        ({"arbitrary"}, INF, True, False),
    ),
    "bias": (lambda s, b: b, (FLOATS,), (set(), None, False, True)),
}


def settled(expected):
    """A fill that nothing can be told from is set, not added."""
    mask, fill, add, bias = expected
    return mask, fill, add and fill is not None and fill > torch.finfo(torch.float64).min, bias


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_float_term_is_taken_apart(name):
    make, masks, expected = ADDITIVE[name]
    site = site_of(added(make), Q, K, V, *masks)
    assert facts(site) == settled(expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda s, m: torch.where(m[:, None, None], zero(s), zero(s) - 9.0),
        lambda s, m: s.new_zeros(2, 1, 1, 7).masked_fill(~m[:, None, None], -9.0),
        lambda s, m: (1.0 - m[:, None, None].to(s.dtype)) * -9.0,
        lambda s, m: (2.0 - m[:, None, None].to(s.dtype)) * LOW,
        lambda s, m: m[:, None, None].to(s.dtype) * LOW,
    ],
    ids=["where", "masked_fill", "one-minus", "two-minus", "times"],
)
def test_small_or_inverted_numbers_are_biases(make):
    """Nearest impostors of a mask: what is added there is felt, so it must be added."""
    assert facts(site_of(added(make), Q, K, V, PAD)) == (set(), None, False, True)


def filled(make):
    def run(q, k, v, *masks):
        s = q @ k.mT
        return s.masked_fill(~make(s, *masks), INF).softmax(-1) @ v

    return run


def rows(n):
    return torch.arange(n)[:, None]


def causal(s):
    return torch.arange(s.shape[-1]) <= rows(s.shape[-2])


KEPT = {
    "and": (lambda s, m: causal(s).logical_and(m[:, None, None]), {"causal", "padding"}),
    "bitwise-and": (lambda s, m: causal(s) & m[:, None, None], {"causal", "padding"}),
    "not-or": (lambda s, m: ~(~causal(s)).logical_or(~m[:, None, None]), {"causal", "padding"}),
    "not-bitwise-or": (lambda s, m: ~(~causal(s) | ~m[:, None, None]), {"causal", "padding"}),
    "double-negation": (lambda s, m: ~~m[:, None, None], {"padding"}),
    "shape": (lambda s, m: m.view(2, 1, 1, 5).expand(2, 3, 5, 5), {"padding"}),
    "cast": (lambda s, m: m[:, None, None].to(torch.bool), {"padding"}),
    "or": (lambda s, m: causal(s) | m[:, None, None], {"arbitrary"}),
    "all": (lambda s, m: torch.ones(5, 5, dtype=torch.bool), set()),
    "rows": (lambda s, m: m[:, None, :, None].expand(2, 1, 5, 5), {"arbitrary"}),
    "heads": (lambda s, m: m[0, :3, None, None].expand(3, 5, 5), {"arbitrary"}),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_positions_are_taken_apart(name):
    make, expected = KEPT[name]
    pad = torch.ones(2, 5, dtype=torch.bool)
    pad[1, 3:] = False
    assert site_of(filled(make), *SQUARE, pad).mask == expected


def both(recipe):
    return sorted((r.base.name, r.negate) for r in conjuncts(recipe))


def test_conjuncts_of_a_negated_sum_are_negated():
    given = (torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
    gm = traced(lambda a, b: a.logical_or(~b) * 1, *given)
    (root,) = (n for n in gm.graph.nodes if "logical_or" in str(n.target))
    a, b = (n.name for n in holders(gm))
    assert both(Recipe(root, True)) == [(a, True), (b, False)]
    assert both(Recipe(root)) == [(root.name, False)]


SHAPES = {
    "causal": (lambda s: causal(s), {"causal"}),
    "window": (lambda s: causal(s) & (torch.arange(5) > rows(5) - 2), {"causal", "window"}),
    "band": (lambda s: (torch.arange(5) - rows(5)).abs() <= 1, {"window"}),
    "upper": (lambda s: torch.arange(5) >= rows(5), {"window"}),
    "strided": (lambda s: torch.arange(5) % 2 == rows(5) % 2, {"arbitrary"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_mask_without_inputs_is_known_by_its_values(name):
    make, expected = SHAPES[name]
    assert site_of(filled(make), *SQUARE).mask == expected


def test_a_triangle_that_is_no_square_is_not_causal():
    assert site_of(filled(causal), Q, K, V).mask == {"arbitrary"}


def test_a_mask_that_is_an_input_is_never_causal():
    """Whatever values it has now, the next call may bring others."""
    lower = torch.ones(5, 5, dtype=torch.bool).tril()
    assert site_of(filled(lambda s, m: m), *SQUARE, lower).mask == {"arbitrary"}
    assert site_of(filled(lambda s, m: m), *SQUARE, lower, weights=1).mask == {"arbitrary"}


def test_a_mask_that_keeps_nothing_is_no_internal_error():
    """``tril(-1)`` of one token keeps nothing."""

    def strict(q, k, v, m, mod):
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(-1)
        return scores_of(q, k).masked_fill(~keep, -1e9).softmax(-1) @ v

    x = torch.randn(2, 1, DISTINCT.D)
    report = attnpass.find_sites(Attention(strict).eval(), x)
    assert len(report.sites) == 1
    assert report.sites[0].mask


@pytest.mark.parametrize("how", ["not", "and", "or"])
def test_logical_operators_of_numbers_are_no_masks_themselves(how):
    """1.0 and 0.0 stand for kept and not; a number is never taken for a flag."""

    def core(q, k, v, m):
        flags = {
            "not": lambda: m.logical_not(),
            "and": lambda: m.logical_and(m * 2).logical_not(),
            "or": lambda: m.logical_or(m).logical_not(),
        }[how]()
        return (q @ k.mT).masked_fill(flags[:, None, None, :], -torch.inf).softmax(-1) @ v

    keep = torch.ones(2, 7, dtype=torch.float64)
    keep[1, 4:] = 0
    site = site_of(core, Q, K, V, keep)
    assert site.mask
