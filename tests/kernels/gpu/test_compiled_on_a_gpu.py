"""The kernels under inductor, which cannot take those of the interpreter."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DEVICE, on_a_gpu

import attnpass


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(64, 192)

    def forward(self, x):
        q, k, v = (y.transpose(1, 2) for y in self.qkv(x).unflatten(-1, (3, 4, 16)).unbind(2))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2)


@on_a_gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra"])
def test_compiled_with_inductor(form, mode):
    model = Attention().to(DEVICE, torch.bfloat16)
    example = torch.randn(2, 200, 64, device=DEVICE).bfloat16()
    plan = attnpass.Plan.create(model, example, form=form)
    options = {"plan": plan, "strict": True} | ({"mode": mode} if mode else {})
    compiled = torch.compile(model, backend="attnpass", options=options, fullgraph=True)
    plain = attnpass.convert(model, plan, example)
    for _ in range(3):
        x = torch.randn(2, 200, 64, device=DEVICE).bfloat16().requires_grad_()
        grads = []
        for run in (compiled, plain):
            out = run(x)
            grads.append([out, *torch.autograd.grad(out.float().square().sum(), x)])
        for got, want in zip(*grads, strict=True):
            assert float((got - want).float().norm() / want.float().norm()) < 2e-2


@on_a_gpu
def test_compiled_with_dynamic_shapes():
    model = Attention().to(DEVICE, torch.bfloat16)
    example = torch.randn(2, 200, 64, device=DEVICE).bfloat16()
    plan = attnpass.Plan.create(model, example, form="relu")
    options = {"plan": plan, "strict": True}
    compiled = torch.compile(model, backend="attnpass", options=options, dynamic=True)
    with torch.no_grad():
        for n in (200, 300, 1000):
            x = torch.randn(2, n, 64, device=DEVICE).bfloat16()
            got, want = compiled(x).float(), attnpass.convert(model, plan, x)(x).float()
            assert float((got - want).norm() / want.norm()) < 2e-2
