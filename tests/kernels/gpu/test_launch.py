"""The small parts of every launch."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DEVICE

from attnpass.kernels.gpu.hydra_triton import Form
from attnpass.kernels.gpu.launch import block_count, constant, programs, spread


def test_spread():
    x = torch.randn(3, 1, device=DEVICE)
    wide, strides = spread(x, (2, 3, 4))
    assert wide.shape == (2, 3, 4) and strides == (0, 1, 0)
    assert wide.data_ptr() == x.data_ptr()
    assert spread(None, (2, 3)) == (None, (0, 0))


@pytest.mark.parametrize(("n", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_block_count(n, blocks):
    assert block_count(n, 16) == blocks


def test_the_interpreter_takes_a_form_as_it_is():
    form = Form(8, 16, 4, 2, False, False, False)
    if DEVICE == "cpu":
        assert constant(form) is form
    else:
        assert [x.value for x in constant(form)] == list(form)


def test_a_persistent_grid_has_programs():
    assert programs(torch.empty(1, device=DEVICE)) > 0
