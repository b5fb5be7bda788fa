"""Fixtures of the kernels' tests: an implementation, a number of threads."""

from __future__ import annotations

from types import SimpleNamespace

import apart
import pytest
import torch

from attnpass.kernels.cpu import launch as cpu

APART = apart.chosen() is not None

# programs do not hear of the dispatcher's calls, nor of threads and switches of this process
collect_ignore = (
    [f"cpu/test_{x}.py" for x in ("pointwise_operators", "launch", "build")] if APART else []
)


@pytest.fixture(autouse=APART)
def programs(monkeypatch):
    """The kernels as programs of their own, where the environment asks for them."""
    from attnpass.kernels.cpu import hydra_launch, pointwise_launch

    monkeypatch.setattr(cpu, "library", lambda name: SimpleNamespace(serve=lambda on: None))
    for module in (pointwise_launch, hydra_launch):
        monkeypatch.setattr(module, "run_kernel", apart.run_kernel)


@pytest.fixture(params=["c++"] if APART else ["direct", "c++", "tiled"])
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
