"""The attention operators in C++ for CPUs, compiled when first used.

``launch`` calls them with strides; what they refuse, plain torch operations compute.
"""

from __future__ import annotations

from attnpass.kernels.cpu import launch

__all__ = ["launch"]
