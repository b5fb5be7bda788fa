"""Attention whose tensors are written in place, aliased, or cut off from gradients."""

from __future__ import annotations

import torch

from models.cases import _case
from models.sizes import INF
from models.spellings import scores_of, weighted


def zeros_written(q, k, v, m, mod):
    """A mask made of zeros, then written through a view."""
    mask = torch.zeros(q.shape[2], k.shape[2])
    mask[:, 3:] = INF
    return weighted(scores_of(q, k) + mask, v)


def ones_written(q, k, v, m, mod):
    keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    keep[:, 3:] = False
    return weighted(scores_of(q, k).masked_fill(~keep, INF), v)


def compared_written(q, k, v, m, mod):
    region = torch.zeros(q.shape[2], k.shape[2])
    region[:, 3:] = 1
    return weighted(scores_of(q, k).masked_fill(region == 1, INF), v)


def bias_written(q, k, v, m, mod):
    """Written after it was added: the sum must keep the old values."""
    bias = torch.ones(q.shape[2], k.shape[2]) * torch.arange(k.shape[2]) * 0.3
    scores = scores_of(q, k) + bias
    bias[:, 1:] = 5.0
    return weighted(scores, v) + bias.sum() * 0.01


def view_of_view(q, k, v, m, mod):
    """Two views taken before the write, read after it."""
    scores = scores_of(q, k)
    same = scores.transpose(-2, -1).transpose(-2, -1)
    scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), INF)
    return weighted(same, v)


def scores_set(q, k, v, m, mod):
    scores = scores_of(q, k)
    scores[..., 0] = INF
    return weighted(scores, v)


def values_written(q, k, v, m, mod):
    weights = scores_of(q, k).softmax(-1)
    v = v.contiguous() * 1.0
    out = weights @ v
    v.mul_(3.0)
    return out + 0.1 * v


def added_out(q, k, v, m, mod):
    scores = scores_of(q, k)
    lower = torch.zeros(scores.shape[-2:]).masked_fill(
        torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), INF
    )
    torch.add(scores, lower, out=scores)
    return weighted(scores, v)


WRITTEN = [
    _case(core)
    for core in (
        zeros_written,
        ones_written,
        compared_written,
        bias_written,
        view_of_view,
        scores_set,
    )
]


def detached_weights(q, k, v, m, mod):
    return scores_of(q, k).softmax(-1).detach() @ v


def detached_scores(q, k, v, m, mod):
    return scores_of(q, k).detach().softmax(-1) @ v


def no_grad_weights(q, k, v, m, mod):
    with torch.no_grad():
        weights = scores_of(q, k).softmax(-1)
    return weights @ v


def no_grad_all(q, k, v, m, mod):
    with torch.no_grad():
        out = weighted(scores_of(q, k), v)
    return out


CUT_GRADIENTS = [
    _case(core) for core in (detached_weights, detached_scores, no_grad_weights, no_grad_all)
]
"""Gradients that stop somewhere between q and the output, and must keep doing so."""
