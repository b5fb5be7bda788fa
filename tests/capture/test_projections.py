"""``Capture.projections``: the weights of every site that a delta may change."""

from __future__ import annotations

import torch
from deltas import data, model
from torch import nn

from attnpass import Capture


def test_every_projection_is_known():
    found = Capture(model()).trace(data()).projections()
    assert set(found["blocks.1.attn"]) == {
        f"blocks.1.attn.{name}.{kind}" for name in ("qkv", "proj") for kind in ("weight", "bias")
    }


class Tied(nn.Module):
    """The head's weight is an output projection's, in another graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()
        self.head = nn.Linear(16, 16)
        self.head.weight = self.net.blocks[1].attn.proj.weight

    def forward(self, x):
        x = self.net.patch_embed(self.net.stem(x)).flatten(2).transpose(1, 2)
        for block in self.net.blocks:
            x = block(x)
        torch._dynamo.graph_break()
        return self.head(x)


def test_a_weight_that_another_graph_uses_has_no_delta():
    found = Capture(Tied().eval()).trace(data()).projections()
    assert "net.blocks.0.attn.proj.weight" in found["net.blocks.0.attn"]
    assert "net.blocks.1.attn.proj.weight" not in found["net.blocks.1.attn"]
