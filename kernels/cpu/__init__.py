"""The attention operators in C++ for CPUs.

``build`` compiles the libraries, ahead or when first used. ``launch`` loads them and says why one
cannot serve a call; ``pointwise_launch`` and ``hydra_launch`` run one call of an operator, by the
library or by plain torch operations.
"""

from __future__ import annotations

from attnpass.kernels.cpu import build, hydra_launch, launch, pointwise_launch

__all__ = ["build", "hydra_launch", "launch", "pointwise_launch"]
