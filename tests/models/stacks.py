"""Blocks in a loop, with or without graph breaks between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.modules import Attention
from models.sizes import DISTINCT
from models.spellings import mul_after


class Block(nn.Module):
    """Pre-norm attention and residual; ``broken`` breaks the graph after each."""

    def __init__(self, sizes=DISTINCT, core=mul_after, broken=False):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(sizes.D), Attention(core, sizes)
        self.broken = broken

    def forward(self, x: Tensor, mask=None) -> Tensor:
        x = x + self.attn(self.norm(x), mask)
        if self.broken:
            torch._dynamo.graph_break()
        return x


class Stack(nn.Module):
    """Blocks in a loop."""

    def __init__(self, depth=3, sizes=DISTINCT, core=mul_after, broken=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes, core, broken) for _ in range(depth))
        self.head = nn.Linear(sizes.D, 3)

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)
