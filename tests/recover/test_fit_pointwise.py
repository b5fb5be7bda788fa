"""Pointwise forms: shifts are solved row by row and regressed on the queries."""

from __future__ import annotations

import math

import pytest
import torch
from recovery_problems import closed

from attnpass import forms
from attnpass.kernels.activations import H
from attnpass.recover import fit_pointwise
from attnpass.recover.calibration import fit
from attnpass.recover.fit_pointwise import fit_shift, mean_key, solve_shift
from attnpass.recover.samples import Sample


@pytest.mark.parametrize("h", sorted(H))
def test_a_shift_gives_every_row_its_mass(h):
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 3, 5, 40)
    x[..., 30:] = -math.inf
    x[1, :, 2, 1:] = -math.inf
    f = H[h][0]
    mass = torch.tensor([[0.3], [1.0], [2.5], [0.5], [0.9]]) * (0.3 if h == "sigmoid" else 1.0)
    shift = solve_shift(f, x, mass)
    kept = torch.isfinite(x)
    found = torch.where(kept, f(torch.where(kept, x - shift, 0.0)), 0.0).sum(-1, keepdim=True)
    torch.testing.assert_close(found, mass.expand_as(found), rtol=1e-4, atol=1e-4)


def test_masked_keys_count_for_nothing_beside_large_logits():
    torch.manual_seed(0)
    x = torch.randn(4, 16) - 12_000
    x[:, 8:] = -math.inf
    shift = solve_shift(torch.relu, x, 8.0)
    found = torch.relu(x[:, :8] - shift).sum(-1)
    torch.testing.assert_close(found, torch.full((4,), 8.0), rtol=2e-3, atol=0)


def skewed(padding: bool = False) -> Sample:
    """Keys whose mean says little of what softmax divides by."""
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 4, 64, 8), torch.randn(4, 2, 64, 8), torch.randn(4, 2, 64, 8)
    k[:, :, :3, 0] += 8  # a few keys that many queries look at, each as much as it will
    q[..., 0] += 2
    keep = torch.ones(4, 1, 1, 64, dtype=torch.bool)
    keep[:, ..., 48:] = not padding
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, keep, enable_gqa=True)
    return Sample(q, k, v, None, keep if padding else None, out)


@pytest.mark.parametrize("h", ["sigmoid", "relu"])
def test_rows_are_shifted_by_what_their_query_says(h, monkeypatch):
    sample, errors = skewed(), []
    for shrink in (1e-2, 1e12):  # at 1e12 only the mean key is left
        monkeypatch.setattr(fit_pointwise, "RIDGE", shrink)
        with torch.no_grad():
            errors.append(fit(forms.Pointwise(4, 2, 8, h=h), [sample]))
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("h", ["sigmoid", "relu"])
@torch.no_grad()
def test_rows_of_padding_teach_nothing(h):
    found = []
    for junk in (False, True):
        s = skewed(padding=True)
        if junk:
            s.q[:, :, 48:], s.out[:, :, 48:] = 50.0, -9.0
        module = forms.Pointwise(4, 2, 8, h=h)
        found.append((fit(module, [s]), *module.parameters()))
    assert found[0][0] == pytest.approx(found[1][0])
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fill", [-1e4, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("h", ["sigmoid", "relu"])
@torch.no_grad()
def test_a_mask_that_is_added_is_a_mask(h, fill):
    found = []
    for added in (False, True):
        s = skewed(padding=True)
        # one row of the batch has no key at all
        s.keep = s.keep.repeat(1, 1, 64, 1)
        s.keep[0, 0, 5] = False
        s.out[0, :, 5] = 0.0
        if added:
            s.bias, s.keep = torch.where(s.keep, 0.0, fill), None
        module = forms.Pointwise(4, 2, 8, h=h)
        fit_shift(module, [s], 1.0, mean_key([s]))
        found.append((module.k0, module.b))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_mean_key_is_of_the_keys_that_are_kept():
    _, sample = closed("sigmoid")
    expected = sample.k[:, :, :6].mean((0, 2))
    torch.testing.assert_close(mean_key([sample]).double(), expected.view(2, -1))
