"""The attention operators in Triton for NVIDIA GPUs.

``limits`` says what a GPU offers a program and which tiles fit, without Triton; the launch modules
beside it need Triton and are imported when an operator is called.
"""

from __future__ import annotations

from attnpass.kernels.gpu import limits

__all__ = ["limits"]
