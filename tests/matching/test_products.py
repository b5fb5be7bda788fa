"""Every spelling of a product of two tensors as one record."""

import pytest
import torch
from torch import randn
from tracing import holders, only, traced

from attnpass.matching.products import contraction

Q, K = randn(2, 3, 5, 4), randn(2, 3, 7, 4)
FLAT = randn(6, 5, 4), randn(6, 7, 4)


def record(function, *inputs, name):
    gm = traced(function, *inputs)
    return contraction(only(gm, name)), gm


def names(record):
    """The letters renamed in the order in which they appear in ``a``, then ``b``."""
    known = {}
    for letter in record.a_letters + record.b_letters:
        known.setdefault(letter, "abcdefgh"[len(known)])
    return tuple(
        "".join(known[c] for c in x) for x in (record.a_letters, record.b_letters, record.out)
    )


SPELLINGS = {
    "matmul": (lambda q, k: q @ k.mT, (Q, K), ("abcd", "abde", "abce")),
    "mm": (lambda q, k: torch.mm(q, k.mT), (Q[0, 0], K[0, 0]), ("ab", "bc", "ac")),
    "bmm": (lambda q, k: torch.bmm(q, k.mT), FLAT, ("abc", "acd", "abd")),
    "baddbmm": (
        lambda q, k: torch.baddbmm(q.new_empty(6, 5, 7), q, k.mT, beta=0),
        FLAT,
        ("abc", "acd", "abd"),
    ),
    "einsum": (
        lambda q, k: torch.einsum("b h i d, b h j d -> b h i j", q, k),
        (Q, K),
        ("abcd", "abed", "abce"),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name):
    function, inputs, letters = SPELLINGS[name]
    found, _ = record(function, *inputs, name=name)
    assert names(found) == letters
    assert len(found.summed) == len(found.own("a")) == len(found.own("b")) == 1
    assert len(found.batch) == inputs[0].dim() - 2
    assert found.factor == 1.0 and found.added is None


def test_a_missing_leading_axis_broadcasts():
    found, _ = record(lambda q, k: q @ k.mT, Q, randn(7, 4), name="matmul")
    assert names(found) == ("abcd", "de", "abce") and found.batch == ""
    assert len(found.own("a")) == 3


def test_what_baddbmm_adds_and_multiplies_with_is_kept():
    found, gm = record(
        lambda x, q, k: torch.baddbmm(x, q, k.mT, alpha=0.5),
        randn(6, 5, 7),
        *FLAT,
        name="baddbmm",
    )
    assert found.factor == 0.5 and found.added is holders(gm)[0]


@pytest.mark.parametrize("beta", [0.5, 2])
def test_a_scaled_addition_is_no_product(beta):
    found, _ = record(
        lambda x, q, k: torch.baddbmm(x, q, k.mT, beta=beta), randn(6, 5, 7), *FLAT, name="baddbmm"
    )
    assert found is None


@pytest.mark.parametrize(
    ("equation", "inputs"),
    [
        ("bhid->bhi", (Q,)),
        ("bhid,bhjd,bhkd->bhijk", (Q, K, K)),
        ("bii,bij->bij", (randn(2, 5, 5), randn(2, 5, 4))),
    ],
)
def test_other_einsums_are_no_products_of_two(equation, inputs):
    found, _ = record(lambda *x: torch.einsum(equation, *x), *inputs, name="einsum")
    assert found is None


def test_a_vector_is_no_operand():
    found, _ = record(lambda q, k: q @ k, Q, randn(4), name="matmul")
    assert found is None
    found, _ = record(lambda q, k: q * k, Q, randn(4), name="mul")
    assert found is None


def test_a_letter_of_one_operand_that_is_summed_alone_is_nobodys_own():
    found, _ = record(lambda q, k: torch.einsum("bhid,bhjd->bij", q, k), Q, K, name="einsum")
    assert found.summed == "hd" and found.batch == "b"
    assert (found.own("a"), found.own("b")) == ("i", "j")
