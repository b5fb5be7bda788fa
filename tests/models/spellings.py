"""Attention without a mask in many spellings: ``(q, k, v, mask, module) -> out``.

Shapes: q ``[B, H, T, d]``, k and v ``[B, H, S, d]``, out ``[B, H, T, d]``; the mask is ignored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def weighted(scores, v):
    return scores.softmax(-1) @ v


def scores_of(q, k):
    return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


def mul_after(q, k, v, m, mod):
    return weighted(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, v)


def mul_before_left(q, k, v, m, mod):
    return weighted(q.shape[-1] ** -0.5 * torch.matmul(q, k.mT), v)


def div_after(q, k, v, m, mod):
    return weighted(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), v)


def div_in_place(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1)
    scores /= math.sqrt(q.shape[-1])
    return weighted(scores, v)


def prescaled(q, k, v, m, mod):
    q = q * q.shape[-1] ** -0.5
    return weighted(q @ k.transpose(-2, -1), v)


def scaled_both(q, k, v, m, mod):
    root = q.shape[-1] ** -0.25
    return weighted((q * root) @ (k * root).transpose(-2, -1), v)


def tensor_scale(q, k, v, m, mod):
    return weighted(q @ k.transpose(-2, -1) / torch.sqrt(mod.width), v)


def temperature(q, k, v, m, mod):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return weighted(q @ k.transpose(-2, -1) * mod.temperature.clamp(max=4.0).exp(), v)


def functional(q, k, v, m, mod):
    return torch.matmul(F.softmax(torch.matmul(q, k.mT) * q.shape[-1] ** -0.5, dim=3), v)


def layer_softmax(q, k, v, m, mod):
    return mod.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5) @ v


def upcast(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def upcast_float(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.float().softmax(-1).type_as(v) @ v


def upcast_operands(q, k, v, m, mod):
    scores = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.softmax(-1).to(v.dtype) @ v


def max_subtracted(q, k, v, m, mod):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return weighted(scores - scores.amax(-1, keepdim=True), v)


def dropped(q, k, v, m, mod):
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return F.dropout(weights, 0.3, mod.training) @ v


def einsum(q, k, v, m, mod):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("b h i j, b h j d -> b h i d", scores.softmax(-1), v)


def transposed_output(q, k, v, m, mod):
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)


def keys_first(q, k, v, m, mod):
    """Scores ``[B,H,S,T]``, softmax over S at -2, values summed over it."""
    scores = k @ q.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (v.transpose(-2, -1) @ scores.softmax(-2)).transpose(-2, -1)


def sdpa(q, k, v, m, mod):
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_keywords(q, k, v, m, mod):
    return F.scaled_dot_product_attention(
        query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, scale=q.shape[-1] ** -0.5
    )


def sdpa_flat(q, k, v, m, mod):
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    return out.unflatten(0, q.shape[:2])


def bmm_flat(q, k, v, m, mod):
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    weights = (torch.bmm(flat[0], flat[1].transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.bmm(weights, flat[2]).view(q.shape)


def baddbmm_empty(q, k, v, m, mod):
    flat = [x.reshape(-1, x.shape[2], x.shape[3]) for x in (q, k, v)]
    empty = torch.empty(flat[0].shape[0], q.shape[2], k.shape[2], dtype=q.dtype)
    scores = torch.baddbmm(empty, flat[0], flat[1].mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), flat[2]).view(q.shape)
