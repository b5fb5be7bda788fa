"""What a mask is: nothing, causal, padding, window or arbitrary; proven, never named."""

import torch
from models import (
    DISTINCT,
    Attention,
)

import attnpass


def test_a_mask_that_keeps_nothing_is_no_internal_error():
    """``tril(-1)`` of one token keeps nothing."""
    from models import scores_of

    def strict(q, k, v, m, mod):
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(-1)
        return scores_of(q, k).masked_fill(~keep, -1e9).softmax(-1) @ v

    x = torch.randn(2, 1, DISTINCT.D)
    report = attnpass.find_sites(Attention(strict).eval(), x)
    assert len(report.sites) == 1
    assert report.sites[0].mask
