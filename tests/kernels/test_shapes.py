"""Layouts, masks and grouped heads."""

from __future__ import annotations

import problems
import pytest
import torch
from kernel_checks import SCALE
from problems import POSITIONS

from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.shapes import causal_mask, heads_last, repeated, without_positions
from attnpass.kernels.tile import Tile


def test_heads_last():
    out = heads_last(torch.empty(2, 3, 5, 4), 7)
    assert out.shape == (2, 3, 5, 7)
    assert out.transpose(1, 2).is_contiguous()


def test_repeated():
    x = torch.randn(2, 3, 5, 4)
    assert repeated(x, 3) is x
    assert torch.equal(repeated(x, 6), x.repeat_interleave(2, 1))


@pytest.mark.parametrize(("t", "s"), [(3, 3), (2, 5), (5, 2), (0, 3), (3, 0)])
def test_causal_mask(t, s):
    mask = causal_mask(torch.empty(1, 1, t, 2), torch.empty(1, 1, s, 2))
    assert torch.equal(mask, torch.ones(t, s, dtype=torch.bool).tril())


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_as_a_bias_and_a_mask(name):
    p = problems.problem(POSITIONS[name])
    call = PointwiseCall(*p.inputs(), SCALE, "relu", p.case.causal, Tile(), *p.positions())
    spelled = without_positions(call)
    assert not spelled.positional and spelled.q is call.q
    _, _, _, bias, keep, *_ = p.spelled()
    shape = (p.case.b, p.case.h, p.case.t, p.case.s)
    visible = (
        torch.ones(shape, dtype=torch.bool).tril() if p.case.causal else torch.ones(shape) > 0
    )
    for got, want in ((spelled.bias, bias), (spelled.keep, keep)):
        assert (got is None) == (want is None)
        if got is not None:
            got, want = (x.detach().expand(shape)[visible] for x in (got, want))
            torch.testing.assert_close(got.double(), want.double())
