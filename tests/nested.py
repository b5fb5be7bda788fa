"""Layers of attention inside regions: checkpoint, nested compile region, autocast, sdpa_kernel."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

BOUND = 1e-10


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        p = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return x + self.o((p @ v).transpose(1, 2).flatten(2))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Attention()

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return self.inner(x)


def autocast(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def one_backend(layer, x):
    with sdpa_kernel(SDPBackend.MATH):
        return layer(x)


def recomputed(layer, x):
    return checkpoint(layer, x, use_reentrant=False)


def plain(layer, x):
    return layer(x)


class Stack(nn.Module):
    def __init__(self, how, cls=Attention, count=3):
        super().__init__()
        self.layers, self.how = nn.ModuleList(cls() for _ in range(count)), how

    def forward(self, x):
        for layer in self.layers:
            x = self.how(layer, x)
        return x


def made(how, cls=Attention, count=3):
    torch.manual_seed(0)
    model = Stack(how, cls, count)
    return model if how is autocast else model.double()


def data(model, grad=True):
    dtype = next(model.parameters()).dtype
    return torch.randn(2, 5, 16, dtype=dtype, requires_grad=grad)


def results(model, call, x):
    """The output and all gradients."""
    out = call(x)
    return [out, *torch.autograd.grad(out.float().square().mean(), [x, *model.parameters()])]


def error(got, want):
    return max(
        ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
        for a, b in zip(got, want, strict=True)
    )
