"""Fixtures of the kernels' tests: an implementation, a number of threads."""

from __future__ import annotations

import os
import platform
from types import SimpleNamespace

import emulated
import pytest
import torch

from attnpass.kernels.cpu import launch as cpu

NEON = os.environ.get("ATTNPASS_INSTRUCTIONS") == "neon" and platform.machine() == "x86_64"


@pytest.fixture(autouse=NEON)
def emulator(monkeypatch):
    """Where the kernels for aarch64 are asked for on another machine, an emulator runs them."""
    from attnpass.kernels.cpu import hydra_launch, pointwise_launch

    monkeypatch.setattr(cpu, "library", lambda name: SimpleNamespace(serve=lambda on: None))
    for module in (pointwise_launch, hydra_launch):
        monkeypatch.setattr(module, "run_kernel", emulated.run_kernel)


@pytest.fixture(params=["c++"] if NEON else ["direct", "c++", "tiled"])
def path(request, monkeypatch):
    """The implementations of the operators on a CPU: C++ alone, from Python, plain torch."""
    why = cpu.refusal("pointwise")
    if why is not None and request.param != "tiled":
        pytest.skip(why)
    serve = (lambda on: None) if why is not None else cpu.library("pointwise").serve
    if request.param == "tiled":
        monkeypatch.setattr(cpu, "library", lambda name: "switched off")
    serve(request.param == "direct")
    yield request.param
    serve(True)


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
