"""Which implementation serves the calls of a device."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attnpass.kernels import dispatch, torch_tiled
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.gpu import (
    hydra_triton_launch,
    pointwise_backward_triton_launch,
    pointwise_triton_launch,
)
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.select import (
    choose_hydra,
)
from attnpass.kernels.tile import Tile


def test_on_an_older_gpu_plain_torch_runs(monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda: 75)
    calls = []
    monkeypatch.setattr(torch_tiled, "pointwise", lambda *a: calls.append(a) or a[0].q)
    with FakeTensorMode():
        q = torch.empty(1, 2, 200, 64, device="cuda", dtype=torch.float16)
        call = PointwiseCall(q, q, q, *[None] * 5, 0.1, "relu", False, Tile())
        dispatch.pointwise(call)
        assert choose_hydra(q, True, None) == Tile("aten")
    assert len(calls) == 1


@pytest.mark.parametrize("family", ["pointwise", "hydra"])
def test_a_gpu_with_kernels_gets_triton(family, monkeypatch):
    launches = {
        "pointwise": (pointwise_triton_launch, pointwise_backward_triton_launch),
        "hydra": (hydra_triton_launch, hydra_triton_launch),
    }[family]
    seen = []
    for module, name in zip(launches, (family, f"{family}_backward"), strict=True):
        monkeypatch.setattr(module, name, lambda *a, name=name: seen.append((name, a)))
    monkeypatch.setattr(gpu, "capability", lambda: 90)
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: contextlib.nullcontext())
    with FakeTensorMode():
        q = torch.empty(1, 2, 20, 64, device="cuda")
    if family == "pointwise":
        call = PointwiseCall(q, q, q, *[None] * 5, 0.1, "relu", False, Tile())
        dispatch.pointwise(call)
        dispatch.pointwise_backward(q, call, True)
        assert seen == [("pointwise", (call,)), ("pointwise_backward", (q, call, True))]
    else:
        call = HydraCall(q, q, q, None, None, False, 1e-6, Tile())
        dispatch.hydra(call)
        dispatch.hydra_backward(q, call)
        assert seen == [("hydra", (call,)), ("hydra_backward", (q, call))]
