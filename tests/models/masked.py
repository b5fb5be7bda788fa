"""Attention with masks and biases in many spellings: ``(q, k, v, mask, module) -> out``.

Shapes: q ``[B, H, T, d]``, k and v ``[B, H, S, d]``; the mask is bool ``[B, S]``, True = attended.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from models.sizes import INF
from models.spellings import scores_of, weighted


def low(q):
    """The lowest number of the dtype."""
    return torch.finfo(q.dtype).min


def pad_additive(q, k, v, m, mod):
    mask = torch.zeros(m.shape, dtype=q.dtype).masked_fill(~m, low(q))[:, None, None, :]
    return weighted(scores_of(q, k) + mask, v)


def pad_additive_left(q, k, v, m, mod):
    mask = torch.where(m, torch.zeros((), dtype=q.dtype), low(q))[:, None, None, :]
    return weighted(mask + scores_of(q, k), v)


def pad_one_minus(q, k, v, m, mod):
    mask = (1.0 - m[:, None, None, :].to(q.dtype)) * low(q)
    return weighted(scores_of(q, k) + mask, v)


def pad_masked_fill(q, k, v, m, mod):
    return weighted(scores_of(q, k).masked_fill(~m[:, None, None, :], low(q)), v)


def pad_where(q, k, v, m, mod):
    return weighted(torch.where(m[:, None, None, :], scores_of(q, k), low(q)), v)


def pad_where_inverted(q, k, v, m, mod):
    drop = m.logical_not()[:, None, None, :].expand(-1, q.shape[1], q.shape[2], -1)
    return weighted(torch.where(drop, torch.full((), low(q), dtype=q.dtype), scores_of(q, k)), v)


def pad_in_place(q, k, v, m, mod):
    scores = scores_of(q, k)
    scores.masked_fill_(~m[:, None, None, :], low(q))
    return weighted(scores, v)


def pad_bias_in_place(q, k, v, m, mod):
    keep = m[:, None, None, :]
    bias = torch.zeros_like(keep, dtype=q.dtype)
    bias.masked_fill_(~keep, low(q))
    return weighted(scores_of(q, k) + bias, v)


def pad_sdpa_bool(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m[:, None, None, :])


def pad_sdpa_float(q, k, v, m, mod):
    mask = torch.zeros(m.shape, dtype=q.dtype).masked_fill(~m, INF)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def pad_bmm(q, k, v, m, mod):
    """fairseq: masked in 4-D, multiplied in 3-D."""
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    scores = torch.bmm(flat[0], flat[1].mT) * q.shape[-1] ** -0.5
    scores = scores.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    scores = scores.masked_fill(~m[:, None, None, :], INF).view(-1, q.shape[2], k.shape[2])
    return torch.bmm(scores.softmax(-1), flat[2]).view(q.shape)


def clamped(q, k, v, m, mod):
    """xglm: a mask of -inf, then a floor: an empty row is the mean of v, not NaN."""
    mask = torch.where(m, 0.0, INF)[:, None, None, :].to(q.dtype)
    return weighted(torch.clamp(scores_of(q, k) + mask, min=low(q)), v)


def small_fill(q, k, v, m, mod):
    """A fill of -1e4: an empty row is the mean of v, not softmax of the logits below."""
    return weighted(scores_of(q, k).masked_fill(~m[:, None, None, :], -1e4), v)


def _lower(q, k):
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()


def causal_fill(q, k, v, m, mod):
    return weighted(scores_of(q, k).masked_fill(~_lower(q, k), INF), v)


def causal_where(q, k, v, m, mod):
    rows = torch.arange(q.shape[2])
    return weighted(torch.where(rows[:, None] >= rows, scores_of(q, k), INF), v)


def causal_additive(q, k, v, m, mod):
    mask = torch.zeros(q.shape[2], k.shape[2], dtype=q.dtype).masked_fill(~_lower(q, k), INF)
    return weighted(scores_of(q, k) + mask, v)


def causal_triu(q, k, v, m, mod):
    """The spelling of Meta's llama."""
    mask = torch.full((q.shape[2], k.shape[2]), INF, dtype=q.dtype).triu(diagonal=1)
    return weighted(scores_of(q, k) + mask, v)


def causal_sdpa(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def causal_sdpa_mask(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_lower(q, k))


def causal_pad(q, k, v, m, mod):
    keep = _lower(q, k) & m[:, None, None, :]
    return weighted(scores_of(q, k).masked_fill(~keep, low(q)), v)


def causal_pad_or(q, k, v, m, mod):
    drop = torch.logical_or(~_lower(q, k), ~m[:, None, None, :])
    return weighted(
        scores_of(q, k) + torch.zeros(drop.shape, dtype=q.dtype).masked_fill(drop, low(q)), v
    )


def window(q, k, v, m, mod):
    rows = torch.arange(q.shape[2])
    gap = rows[:, None] - rows
    return weighted(scores_of(q, k).masked_fill(~((gap >= 0) & (gap < 3)), INF), v)


def buffer_mask(q, k, v, m, mod):
    """nanoGPT: the mask is a buffer, whose values nobody may assume."""
    keep = mod.lower[:, :, : q.shape[2], : k.shape[2]]
    return weighted(scores_of(q, k).masked_fill(keep == 0, INF), v)


def position_bias(q, k, v, m, mod):
    return weighted(scores_of(q, k) + mod.table[:, : q.shape[2], : k.shape[2]], v)


def alibi_baddbmm(q, k, v, m, mod):
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    slopes = torch.arange(1, q.shape[1] + 1).repeat(q.shape[0])[:, None, None]
    alibi = slopes * torch.arange(k.shape[2], dtype=q.dtype)[None, None] * 0.1
    scores = torch.baddbmm(alibi, flat[0], flat[1].mT, beta=1.0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).view(q.shape)


def bias_then_scale(q, k, v, m, mod):
    """codegen: the division holds for the bias as well."""
    scores = q @ k.mT + mod.table[:, : q.shape[2], : k.shape[2]]
    return weighted(scores / math.sqrt(q.shape[-1]), v)
