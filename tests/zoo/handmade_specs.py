"""Attention as people write it themselves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo import EAGER, Built, add, noise


class Heads(nn.Module):
    """Projections around a core of ``(q, k, v) [B, H, T, d]``."""

    def __init__(self, core, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.core, self.heads = core, heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        out = self.core(split(self.q(x)), split(self.k(x)), split(self.v(x)))
        return x + self.o(out.transpose(1, 2).flatten(2))


class Stack(nn.Module):
    """Two layers, checkpointed or with a graph break between them where asked."""

    def __init__(self, core, how: str = "") -> None:
        super().__init__()
        self.layers, self.how = nn.ModuleList(Heads(core) for _ in range(2)), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if self.how == "checkpoint":  # noqa: SIM108
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
            if self.how == "break":
                torch._dynamo.graph_break()
        return x


def plain(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def by_hand(q, k, v):
    s = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True) @ v


def nano_gpt(q, k, v):
    n = q.shape[-2]
    s = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
    below = torch.tril(torch.ones(n, n, device=q.device)).view(1, 1, n, n)
    return F.softmax(s.masked_fill(below == 0, float("-inf")), dim=-1) @ v


def columns(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(-2) @ v


def normalised(q, k, v):
    s = (q @ k.transpose(-2, -1)).softmax(-1)
    return (s / (1e-6 + s.sum(-2, keepdim=True))) @ v


def made(core, how: str = ""):
    def build(impl: str) -> Built:
        return Stack(core, how), (noise(2, 9, 32),), {}

    return build


add("handmade", "plain", made(plain), EAGER, sample=True)
add("handmade", "checkpointed", made(plain, "checkpoint"), EAGER, sample=True)
add("handmade", "graph-breaks", made(plain, "break"), EAGER, sample=True)
add("handmade", "exp-sum", made(by_hand), EAGER, mixed=2, sample=True)
add("handmade", "nano-gpt", made(nano_gpt), EAGER, sample=True)
add(
    "handmade",
    "columns",
    made(columns),
    EAGER,
    sample=True,
    why={"AXIS_NOT_TOKEN": "softmax over the queries: not attention"},
)
add(
    "handmade",
    "slots",
    made(normalised),
    EAGER,
    sample=True,
    why={
        "NOT_ATTENTION:gate": "weights normalised a second time over the queries (slot attention)"
    },
)
