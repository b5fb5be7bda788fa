"""Distances: rows, values that are not finite, and the temperature."""

from __future__ import annotations

import math

import pytest
import torch

from attnpass.recover.distances import TEMPERATURE, divergence, relative_error


def test_the_relative_error_counts_rows_where_the_original_is_finite():
    want = torch.tensor([[3.0, math.inf], [4.0, 1.0]])
    got = torch.tensor([[2.0, 7.0], [5.0, 3.0]])
    assert float(relative_error(got, want)) == pytest.approx((1 + 1 + 4) / (9 + 16 + 1))
    rows = torch.tensor([[True], [False]])
    assert float(relative_error(got, want, rows)) == pytest.approx(1 / 9)


def test_errors_of_narrow_tensors_are_float32():
    x = torch.full((3,), 2.0, dtype=torch.float16)
    error = relative_error(300 * x, x)
    assert error.dtype == torch.float32 and float(error) == 299.0**2


def test_a_target_of_zeros_gives_no_nan():
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0


def test_the_divergence_is_that_of_softened_distributions_over_rows():
    torch.manual_seed(0)
    got, want = torch.randn(2, 2, 4, 5)
    rows = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool().unsqueeze(-1)
    p, q = ((x.double() / TEMPERATURE).softmax(-1) for x in (want, got))
    each = TEMPERATURE**2 * (p * (p / q).log()).sum(-1)
    for selected, expected in ((rows, each[rows[..., 0]].mean()), (None, each.mean())):
        torch.testing.assert_close(
            divergence(got, want, selected).double(), expected, rtol=1e-5, atol=1e-6
        )


def test_classes_that_are_ruled_out_have_no_divergence():
    want = torch.tensor([[1.0, 2.0, -math.inf]])
    assert divergence(want, want, None) == 0
    one_more = torch.tensor([[1.0, 2.0, 0.0]])
    assert 0 < divergence(one_more, want, None) < math.inf
