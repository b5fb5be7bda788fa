"""Modules that resemble attention: decoys with the decline code expected, and impostors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.cases import _case
from models.sizes import DISTINCT
from models.spellings import scores_of, weighted


def wrong_axis(q, k, v, m, mod):
    return scores_of(q, k).softmax(-2) @ v


def head_axis(q, k, v, m, mod):
    return scores_of(q, k).softmax(1) @ v


def channel(q, k, v, m, mod):
    """XCiT: d x d weights."""
    return (v.transpose(-2, -1).mT.mT.mT.mT @ (q.mT @ k * 0.3).softmax(-1)).mT.contiguous().mT


def channel_fused(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT


def linear_attention(q, k, v, m, mod):
    """Softmax of q and of k, no T x S map."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def sum_normalised(q, k, v, m, mod):
    weights = scores_of(q, k).relu()
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)) @ v


def soft_sum(q, k, v, m, mod):
    """Softmax, then gated: no plain attention any more."""
    return (scores_of(q, k).softmax(-1) * mod.temperature) @ v


def joint_rows(q, k, v, m, mod):
    """Softmax over pieces of two rows' worth of columns: the view is not the identity."""
    scores = scores_of(q, k)
    B, H, T, S = scores.shape
    return scores.reshape(B, H, S, T).softmax(-1).reshape(B, H, T, S) @ v


def split_rows(q, k, v, m, mod):
    """Softmax within halves of the keys."""
    scores = scores_of(q, k)
    B, H, T, S = scores.shape
    return scores.reshape(B, H, 2 * T, S // 2).softmax(-1).reshape(B, H, T, S) @ v


def column_maximum(q, k, v, m, mod):
    """The maximum of a column differs along the row: softmax feels it."""
    scores = scores_of(q, k)
    return weighted(scores - scores.amax(-2, keepdim=True), v)


def rounded(q, k, v, m, mod):
    return weighted(torch.div(scores_of(q, k), 0.5, rounding_mode="floor"), v)


def small_after(q, k, v, m, mod):
    """The scale shrinks the mask until it is no mask."""
    lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return weighted(scores_of(q, k).masked_fill(~lower, -2e4) * 1e-4, v)


class Router(nn.Module):
    """A mixture of experts: softmax of a linear layer, then a product."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.gate, self.experts = nn.Linear(sizes.D, 3), nn.Parameter(torch.randn(3, sizes.D))

    def forward(self, x):
        return self.gate(x).softmax(-1) @ self.experts


class Pooling(nn.Module):
    """Attention pooling: softmax over tokens of one score each."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.score = nn.Linear(sizes.D, 1)

    def forward(self, x):
        return (x * self.score(x).softmax(1)).sum(1)


class PoolingProduct(nn.Module):
    """As ``Pooling``, the sum written as a product."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.score = nn.Linear(sizes.D, 2)

    def forward(self, x):
        return self.score(x).softmax(1).mT @ x


class Classifier(nn.Module):
    """Softmax at the end."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.head = nn.Linear(sizes.D, 10)

    def forward(self, x):
        return self.head(x).softmax(-1)


class JointMap(nn.Module):
    """One softmax over the whole T x S map, one head."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.q, self.k = nn.Linear(sizes.D, sizes.D), nn.Linear(sizes.D, sizes.D)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT
        return scores.flatten(1).softmax(-1).view(scores.shape) @ x


class XCA(nn.Module):
    """Cross-covariance attention."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.H, self.d = sizes.H, sizes.d
        self.qkv, self.o = nn.Linear(sizes.D, 3 * sizes.D), nn.Linear(sizes.D, sizes.D)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.H, self.d).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        out = (q @ k.transpose(-2, -1)).softmax(-1) @ v  # [B, H, d, T]
        return self.o(out.permute(0, 3, 1, 2).reshape(B, T, D))


DECOYS = [
    (_case(wrong_axis), "AXIS_NOT_TOKEN"),
    (_case(head_axis), "AXIS_NOT_TOKEN"),
    (_case(None, name="channel", build=lambda z: XCA(z)), "AXIS_NOT_TOKEN"),
    (_case(channel_fused), "AXIS_NOT_TOKEN"),
    (_case(None, name="router", build=Router), "NOT_ATTENTION:router"),
    (_case(None, name="pooling", build=Pooling), "NOT_ATTENTION:router"),
    (_case(None, name="pooling-product", build=PoolingProduct), "NOT_ATTENTION:router"),
    (_case(None, name="classifier", build=Classifier), "NOT_ATTENTION:router"),
]
"""What is no attention, with the code that says so."""

IMPOSTORS = [
    _case(joint_rows, "context"),
    _case(split_rows, even=True),
    _case(column_maximum),
    _case(rounded),
    _case(small_after),
    _case(None, name="joint-map", build=JointMap),
]
"""Near misses, which a careless reader takes for attention. Whatever the verdict, no legal
``softmax`` site may change their numbers."""
