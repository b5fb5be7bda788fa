"""The attention operators in C++ for CPUs, compiled when first used.

``launch`` holds the compiled library and says why it cannot serve a call; ``pointwise_launch`` and
``hydra_launch`` run one call of an operator, by the library or by plain torch operations.
"""

from __future__ import annotations

from attnpass.kernels.cpu import hydra_launch, launch, pointwise_launch

__all__ = ["hydra_launch", "launch", "pointwise_launch"]
