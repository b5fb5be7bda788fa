"""Fixtures of the kernels' tests: an implementation, a number of threads."""

from __future__ import annotations

import pytest
import torch

from attnpass.kernels.cpu import launch as cpu


@pytest.fixture(params=["c++", "tiled"])
def path(request, monkeypatch):
    """Both implementations of the operators on a CPU."""
    why = cpu.refusal("pointwise")
    if request.param == "tiled":
        monkeypatch.setattr(cpu, "library", lambda name: "switched off")
    elif why is not None:
        pytest.skip(why)
    return request.param


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
