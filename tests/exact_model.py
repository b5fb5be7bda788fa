"""A model and batches without random numbers: their digests are the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def exact(*shape: int, offset: int = 0) -> Tensor:
    """Multiples of 1/16 from -1/2 to 1/2, in an order that repeats after 17 of them."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) + offset) * 5) % 17 - 8).float().view(shape) / 16


class ExactAttention(nn.Module):
    """Two layers of self-attention and a linear layer over ``[B, T, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in "ab")
        self.out = nn.ModuleList(nn.Linear(8, 8) for _ in "ab")
        self.last = nn.Linear(8, 8)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(exact(*p.shape, offset=i))

    def forward(self, x: Tensor) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (y.unflatten(2, (2, 4)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + out(y.transpose(1, 2).flatten(2))
        return self.last(x)


def exact_batches(count: int = 3) -> list[tuple[Tensor]]:
    """Batches ``[2, 6, 8]``."""
    return [(2 * exact(2, 6, 8, offset=i),) for i in range(count)]
