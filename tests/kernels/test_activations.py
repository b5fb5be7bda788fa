"""The functions h and their slopes; every list of them has the same members."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from kernel_checks import H

from attnpass.kernels import activations, reference
from attnpass.kernels.activations import RELU_FAMILY
from attnpass.kernels.cpu import launch as cpu


def test_every_h_is_there():
    assert set(H) == {"sigmoid", "relu", "relu2", "gelu", "softplus", "identity", "relu6"}
    assert set(activations.H) == set(H)


def test_the_relu_family_is_every_h_but_sigmoid():
    assert ("sigmoid", *RELU_FAMILY) == tuple(activations.H)
    assert set(activations.EXACT.values()) < set(activations.H)


def test_the_kernels_number_the_functions_in_the_same_order():
    source = (Path(cpu.__file__).parent / "attention_cpu.h").read_text()
    table = source[source.index("static const Pointer table[]") :]
    table = table[: table.index("};")]
    # beyond them, the weights of softmax
    assert [x.lower() for x in re.findall(r"F<(\w+)", table)] == [*activations.H, "exp"]
    assert f"constexpr int64_t SOFTMAX = {len(activations.H)};" in source


@pytest.mark.parametrize("h", H)
def test_values_and_slopes(h):
    # no point at a kink
    x = torch.linspace(-9.1, 9.1, 400, dtype=torch.float64, requires_grad=True)
    want = reference.H_FUNCTIONS[h](x)
    (slope,) = torch.autograd.grad(want.sum(), x)
    torch.testing.assert_close(activations.H[h].value(x), want)
    torch.testing.assert_close(activations.H[h].slope(x), slope)
