"""The computation of a graph as text: the same in every capture, another for another function."""

from __future__ import annotations

import torch
from torch import nn

from attnpass import Capture
from attnpass.fingerprint import computation


class Computes(nn.Module):
    """A constant, a condition's bodies, a dtype and an activation, to be changed."""

    def __init__(self, scale=0.5, least=0.0, act=torch.relu, dtype=torch.float32) -> None:
        super().__init__()
        self.linear, self.scale, self.least = nn.Linear(4, 4), scale, least
        self.act, self.dtype = act, dtype

    def forward(self, x):
        x = self.act(self.linear(x)) * torch.tensor([self.scale, 1.0, 1.0, 1.0])
        y = torch.cond(x.sum() > 0, lambda x: x + self.least, lambda x: -x, (x,))
        return y.to(self.dtype).softmax(-1)


def test_what_a_graph_computes():
    def text(**given):
        capture = Capture(Computes(**given)).trace(torch.rand(2, 4))
        return "".join(computation(g.normal) for g in capture.graphs)

    found = [text(), text()]
    assert found[0] == found[1], "whatever the weights, however often captured"
    given = [{"scale": 0.25}, {"least": 1.0}, {"act": torch.tanh}, {"dtype": torch.float64}]
    others = [text(**x) for x in given]
    assert len({found[0], *others}) == 5
