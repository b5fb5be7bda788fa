"""The SkipAt benchmark checks every part before it times it, by torch's convolution too."""

from __future__ import annotations

import pytest
import torch
from scripts import skipat_phi

from attnpass.forms import SkipAt


def test_torchs_convolution_gives_the_same():
    torch.manual_seed(0)
    form, other = SkipAt(8, r=1.0), skipat_phi.ByConv1d(8, r=1.0)
    other.load_state_dict(form.state_dict())
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(other(x), form(x))


@pytest.fixture
def eager(monkeypatch):
    """The benchmark without a compiler and without its clock; the seconds that it asked for."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda part, dynamic: part)
    monkeypatch.setattr(
        skipat_phi, "timed", lambda runs, seconds: asked.append(seconds) or {"parts": list(runs)}
    )
    monkeypatch.setattr(skipat_phi, "say", lambda row, *parts: None)
    return asked


@torch.no_grad()
@pytest.mark.parametrize(("size", "parts"), [((3, 4), 2), (12, 3)])
def test_a_row_says_what_was_timed(size, parts, eager):
    torch.manual_seed(0)
    row = skipat_phi.measure(2, size, 8, 0.5)
    assert row["parts"][:2] == ["phi", "linear layers alone"] and len(row["parts"]) == parts
    assert (row["n"], row["grid"]) == (12, size if isinstance(size, tuple) else None)
    assert eager == [6.0]


@torch.no_grad()
def test_a_part_that_is_off_is_not_timed(eager, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(skipat_phi, "TOLERANCE", 0.0)
    with pytest.raises(AssertionError, match="phi is off by"):
        skipat_phi.measure(2, 12, 8, 0.5)
    assert eager == []
