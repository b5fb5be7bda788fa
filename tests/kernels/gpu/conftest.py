"""Fixtures of the GPU kernels' tests."""

from __future__ import annotations

import pytest
import torch

from attnpass.kernels.gpu import pointwise_backward_triton_launch, pointwise_triton_launch


@pytest.fixture(autouse=True)
def nan_in_every_fresh_tensor():
    # on a GPU deterministic matmuls of the reference would ask for a cuBLAS workspace
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def described(monkeypatch):
    """Per launch that may take descriptors, whether it had them."""
    used = []
    forward, backward = pointwise_triton_launch, pointwise_backward_triton_launch
    for module, name in (
        (forward, "pointwise_forward"),
        (backward, "pointwise_queries"),
        (backward, "pointwise_keys"),
    ):

        class Spy:
            def __init__(self, kernel, at):
                self.kernel, self.at = kernel, at

            def __getitem__(self, grid):
                def launch(*args, **options):
                    used.append(args[self.at] is not None)
                    return self.kernel[grid](*args, **options)

                return launch

        at = 10 if name == "pointwise_forward" else 11
        monkeypatch.setattr(module, name, Spy(getattr(module, name), at))
    return used


@pytest.fixture
def split(monkeypatch):
    """Per forward, how many programs share the keys of a tile."""
    parts, right = [], pointwise_triton_launch.pointwise_forward

    class Spy:
        def __getitem__(self, grid):
            parts.append(grid[1])
            return right[grid]

    monkeypatch.setattr(pointwise_triton_launch, "pointwise_forward", Spy())
    return parts
