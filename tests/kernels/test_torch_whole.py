"""The forms as plain operations against float64."""

from __future__ import annotations

import problems
import pytest
import torch
from kernel_checks import H, check
from problems import CASES
from tolerance import assert_near

from attnpass.kernels import reference, torch_whole
from attnpass.kernels.call import HydraCall
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", CASES)
def test_pointwise_aten(name, h):
    check(problems.problem(CASES[name]), h, "aten")


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads_of_hydra(causal):
    q, (k, v) = torch.randn(2, 4, 6, 5), torch.randn(2, 2, 2, 6, 5)
    call = HydraCall(q, k, v, None, None, causal, 1e-6, Tile("aten"))
    assert_near(torch_whole.hydra(call), reference.hydra(q, k, v, None, causal=causal, eps=1e-6))
