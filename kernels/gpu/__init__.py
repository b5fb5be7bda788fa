"""The attention operators in Triton for NVIDIA GPUs.

``limits`` says what a GPU offers a program and which tiles fit, without Triton. The launch modules
need Triton: import them when an operator is called, never at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnpass.kernels.gpu import limits

if TYPE_CHECKING:
    from attnpass.kernels.gpu import (
        hydra_triton_launch,
        pointwise_backward_triton_launch,
        pointwise_triton_launch,
    )

__all__ = [
    "hydra_triton_launch",
    "limits",
    "pointwise_backward_triton_launch",
    "pointwise_triton_launch",
]
