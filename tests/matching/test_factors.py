"""Axes as products of factors: views split and merge them where that is provable, else nothing."""

import math

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from attnpass.matching.factors import Factor, kinds, regroup, surer

B, T = sympy.symbols("B T", integer=True, positive=True)


def factors(*sizes, kind="input"):
    """One axis of one factor for each size; axes of size 1 have none."""
    return [() if s == 1 else (Factor(i, s, kind),) for i, s in enumerate(sizes)]


def size(axis):
    return sympy.prod([f.size for f in axis])


def test_merging_keeps_the_factors_in_order():
    a, b, c = factors(2, 3, 4)
    assert regroup([a, b, c], [6, 4]) == (a + b, c)
    assert regroup([a, b, c], [24]) == (a + b + c,)


def test_splitting_names_the_outer_and_the_inner_part():
    ((f,),) = factors(12)
    outer, inner = regroup([(f,)], [3, 4])
    assert [p.size for p in (*outer, *inner)] == [3, 4]
    assert len({f, *outer, *inner}) == 3
    assert regroup([(f,)], [3, 4]) == (outer, inner)  # the same split of the same factor
    assert regroup([(f,)], [4, 3])[1] != outer


def test_merge_undoes_a_split_for_the_axes_beside_it():
    a, b = factors(12, 5)
    split = regroup([a, b], [3, 4, 5])
    assert split[2] == b
    assert [size(x) for x in regroup(split, [12, 5])] == [12, 5]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [((2, 3, 4), (4, 6)), ((6,), (4,)), ((6,), (2, 2)), ((2,), (2, 3)), ((5,), ())],
)
def test_sizes_that_cut_a_factor_are_refused(own, wanted):
    assert regroup(factors(*own), list(wanted)) is None


def test_symbolic_factors_split_where_the_ratio_is_an_integer():
    b, t = factors(B, T)
    assert regroup([b, t], [B * T]) == (b + t,)
    assert regroup([b + t], [B, T]) == (b, t)
    merged = factors(4 * B)
    outer, inner = regroup(merged, [B, 4])
    assert [f.size for f in (*outer, *inner)] == [B, 4]
    assert regroup(merged, [4, B]) is not None
    assert regroup(factors(B), [4, B / 4]) is None  # nobody knows that 4 divides B
    assert regroup([b, t], [T, B]) is None


def test_axes_of_size_one_come_and_go():
    a, b = factors(2, 3)
    assert regroup([a, b], [1, 2, 1, 3, 1]) == ((), a, (), b, ())
    assert regroup([(), a, b], [2, 3]) == (a, b)


def test_surer_kinds_name_an_axis():
    (token,), (feature,), (param,) = (factors(3, kind=k) for k in ("token", "feature", "param"))
    assert surer(feature, token) == surer(token, feature) == token
    assert surer(param, ()) == param and surer((), param) == param
    assert kinds(token + feature) == {"token", "feature"} and kinds(()) == set()


SMALL = st.integers(1, 6)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(SMALL | st.sampled_from([B, T, 2 * B, B * T]), min_size=1, max_size=4), st.data())
def test_any_regrouping_keeps_sizes_and_order(sizes, data):
    """Neighbours merged at random, then split back: sizes as asked, no factor moved or lost."""
    axes = factors(*sizes)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes) - 1)))) if len(sizes) > 1 else []
    groups = [sizes[i:j] for i, j in zip([0, *cuts], [*cuts, len(sizes)], strict=True)]
    wanted = [sympy.prod(g) for g in groups]
    wanted = [int(w) if w.is_number else w for w in map(sympy.sympify, wanted)]
    merged = regroup(axes, wanted)
    assert merged is not None
    assert [f for a in merged for f in a] == [f for a in axes for f in a]
    assert [size(a) for a in merged] == wanted
    back = regroup(merged, sizes)
    assert back is not None and list(back) == axes


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(SMALL, min_size=1, max_size=4), st.lists(SMALL, min_size=1, max_size=4))
def test_a_regrouping_is_exact_or_refused(own, wanted):
    """What comes out has the sizes asked for; sizes of another product are always refused."""
    found = regroup(factors(*own), wanted)
    if found is None:
        return
    assert math.prod(own) == math.prod(wanted)
    assert [size(a) for a in found] == wanted
