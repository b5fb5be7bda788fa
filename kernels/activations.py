"""The functions h of the pointwise family, each with its slope, as plain torch operations.

All other lists of these functions derive from ``H``, but for the float64 reference, which is to be
independent of the code that it checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SQRT_HALF, _INV_SQRT_2PI = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


class Activation(NamedTuple):
    """A function of the logits and its derivative, both elementwise."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * _SQRT_HALF)) + x * torch.exp(-0.5 * x * x) * _INV_SQRT_2PI


def _sigmoid_slope(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return p - p * p


H: dict[str, Activation] = {
    "sigmoid": Activation(torch.sigmoid, _sigmoid_slope),
    "relu": Activation(torch.relu, lambda x: (x > 0).to(x.dtype)),
    "relu2": Activation(lambda x: torch.relu(x).square(), lambda x: 2 * torch.relu(x)),
    "gelu": Activation(F.gelu, _gelu_slope),
    "softplus": Activation(F.softplus, torch.sigmoid),
    "identity": Activation(lambda x: x, torch.ones_like),
    "relu6": Activation(F.relu6, lambda x: ((x > 0) & (x < 6)).to(x.dtype)),
}
"""Every h of the pointwise family (2309.08586 studies all seven).

The C++ kernels know an h by its place here: the order is that of ``of`` in ``attention_cpu.h``.
"""

RELU_FAMILY = tuple(name for name in H if name != "sigmoid")
"""The h that are scaled by a power of the length; sigmoid takes the length into its logits."""

SOFTMAX = "softmax"
"""What stands for an h in a call of exact softmax; the C++ kernels know it as the next number."""

EXACT = {"sigmoid_tanh": "sigmoid"}
"""The functions for which a GPU alone has a shortcut, each with the h that a CPU computes."""
