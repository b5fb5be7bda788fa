"""The functions h of the pointwise family, each with its slope, as plain torch operations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SQRT_HALF, _INV_SQRT_2PI = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


def _gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * _SQRT_HALF)) + x * torch.exp(-0.5 * x * x) * _INV_SQRT_2PI


def _sigmoid_slope(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return p - p * p


H: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (torch.sigmoid, _sigmoid_slope),
    "relu": (torch.relu, lambda x: (x > 0).to(x.dtype)),
    "relu2": (lambda x: torch.relu(x).square(), lambda x: 2 * torch.relu(x)),
    "gelu": (F.gelu, _gelu_slope),
    "softplus": (F.softplus, torch.sigmoid),
    "identity": (lambda x: x, torch.ones_like),
    "relu6": (F.relu6, lambda x: ((x > 0) & (x < 6)).to(x.dtype)),
}
"""Every h of the pointwise family with its slope (2309.08586 studies all seven)."""
