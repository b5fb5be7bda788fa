"""The record of a call."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import problems
import pytest
import torch
from kernel_checks import SCALE
from problems import CASES, POSITIONS

from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize("name", CASES)
def test_sizes(name):
    p = problems.problem(CASES[name])
    call = PointwiseCall(*p.inputs(), SCALE, "relu", False, Tile())
    c = p.case
    assert call.sizes == (c.b, c.h, c.g, c.t, c.s, c.d, c.dv)
    assert call.sizes._fields[:3] == ("batch", "heads", "groups")


@pytest.mark.parametrize("name", [*CASES, *POSITIONS])
def test_positional(name):
    p = problems.problem((CASES | POSITIONS)[name])
    call = PointwiseCall(*p.inputs(), SCALE, "relu", False, Tile(), *p.positions())
    assert call.positional == (name in POSITIONS)


def test_a_call_cannot_be_changed():
    q = torch.empty(1, 1, 2, 2)
    call = HydraCall(q, q, q, None, None, False, 1e-6, Tile())
    with pytest.raises(FrozenInstanceError):
        call.eps = 1.0
