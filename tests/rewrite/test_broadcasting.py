"""Operands that broadcast (one batch, one head) are expanded as torch expands them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnpass

BATCHES = ((1, 3, 3), (3, 1, 1), (1, 3, 1), (3, 3, 1))
HEADS = ((4, 4, 4), (1, 4, 4), (4, 1, 1), (4, 4, 1))
SCALE = 0.25


class Spelled(nn.Module):
    """Attention without projections, fused or by hand."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, q, k, v):
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, scale=SCALE)
        return (q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v


def sigmoid(q, k, v):
    """Sigmoid attention by hand, b = -log S."""
    return torch.sigmoid(q @ k.transpose(-1, -2) * SCALE - math.log(k.shape[-2])) @ v


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batches", BATCHES)
def test_a_form_gives_what_torch_broadcasts_to(batches, heads, fused, dynamic):
    torch.manual_seed(0)
    lengths = (5, 7, 7)
    q, k, v = (torch.randn(*s, 16) for s in zip(batches, heads, lengths, strict=True))
    model = Spelled(fused)
    for form, reference in (("softmax", model), ("sigmoid", sigmoid)):
        torch._dynamo.reset()
        attnpass.reset_report()
        options = {"form": form, "inner": "eager"}
        run = torch.compile(model, backend="attnpass", options=options, dynamic=dynamic)
        with torch.no_grad():
            got = run(q, k, v)
        report = attnpass.compiled_report()
        # what is not read is declined aloud, and stays softmax
        by = reference if report.rewritten else model
        assert report.rewritten or report.declined
        want = by(q.double(), k.double(), v.double())
        assert got.shape == want.shape and (got - want).abs().max() < 1e-5
