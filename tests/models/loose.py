"""Attention whose logits or weights pass operators that no reader knows: its softmax is known.

Shapes: B batch, H heads, T tokens, d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.modules import Attention
from models.sizes import DISTINCT, INF
from models.spellings import scores_of


def numbers_only(q, k, v, m, mod):
    scores = torch.nan_to_num(scores_of(q, k))
    return (scores + torch.full(scores.shape[-2:], INF).triu(1)).softmax(-1) @ v


def clamped_both(q, k, v, m, mod):
    return scores_of(q, k).clamp(-5, 5).softmax(-1) @ v


def bias_into_a_slice(q, k, v, m, mod):
    scores = scores_of(q, k)
    scores[:, :, 1:, 1:] += mod.table[:, : q.shape[2] - 1, : k.shape[2] - 1]
    return scores.softmax(-1) @ v


def written_by_index(q, k, v, m, mod):
    scores = scores_of(q, k)
    i, j = torch.triu_indices(q.shape[2], k.shape[2], 1)
    scores[:, :, i, j] = -torch.finfo(scores.dtype).max
    return scores.softmax(-1) @ v


def written_by_flags(q, k, v, m, mod):
    flat = scores_of(q, k).reshape(-1, k.shape[2])
    late = torch.arange(k.shape[2])[None] > torch.arange(flat.shape[0])[:, None] % q.shape[2]
    flat[late] = -1e6
    return flat.view(*q.shape[:3], k.shape[2]).softmax(-1) @ v


def filled_after(q, k, v, m, mod):
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return scores_of(q, k).masked_fill(hidden, INF).softmax(-1).masked_fill(hidden, 0.0) @ v


def number_after(q, k, v, m, mod):
    return scores_of(q, k).softmax(-1).nan_to_num(0.0) @ v


def combined_over_places(q, k, v, m, mod):
    kernel = torch.full((q.shape[1], 1, 3, 3), 0.1, dtype=q.dtype)
    return F.conv2d(scores_of(q, k), kernel, padding=1, groups=q.shape[1]).softmax(-1) @ v


def combined_over_places_after(q, k, v, m, mod):
    kernel = torch.full((q.shape[1], 1, 3, 3), 0.1, dtype=q.dtype)
    return F.conv2d(scores_of(q, k).softmax(-1), kernel, padding=1, groups=q.shape[1]) @ v


def heads_through_layers(q, k, v, m, mod):
    last = scores_of(q, k).permute(0, 2, 3, 1)
    mixed = F.linear(last, torch.eye(q.shape[1], dtype=q.dtype).roll(1, 0)).sin()
    return F.layer_norm(mixed, mixed.shape[-1:]).permute(0, 3, 1, 2).softmax(-1) @ v


def difference_of_heads(q, k, v, m, mod):
    first, second = scores_of(q, k).softmax(-1).chunk(2, 1)
    return (torch.cat([first - 0.3 * second] * 2, 1)) @ v


def normed_scores(q, k, v, m, mod):
    return F.layer_norm(scores_of(q, k), (k.shape[2],)).softmax(-1) @ v


def distances(q, k, v, m, mod):
    return (-torch.cdist(q, k)).softmax(-1) @ v


def part_of_a_bias(q, k, v, m, mod):
    b, h, t, _ = q.shape
    bias = torch.ones(b * h, t, k.shape[2], dtype=q.dtype).tril()
    s = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0.5, alpha=0.3)
    return (s.softmax(-1) @ v.flatten(0, 1)).unflatten(0, (b, h))


def largest_scattered(q, k, v, m, mod):
    most, at = scores_of(q, k).topk(3, -1)
    return torch.zeros_like(q @ k.mT).scatter(-1, at, most.softmax(-1)) @ v


def one_query_by_hand(q, k, v, m, mod):
    w = (q.mean(2, keepdim=True) * k).sum(-1).softmax(-1)
    return (w.unsqueeze(-1) * v).sum(2, keepdim=True).expand_as(v)


def sums_of_features(q, k, v, m, mod):
    """Additive attention (1409.0473)."""
    return torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)).sum(-1).softmax(-1) @ v


def sums_of_numbers(q, k, v, m, mod):
    """As in graph attention networks (1710.10903)."""
    return F.leaky_relu(q.sum(-1, keepdim=True) + k.sum(-1).unsqueeze(2), 0.2).softmax(-1) @ v


def squared_differences(q, k, v, m, mod):
    return (-0.1 * (q.unsqueeze(3) - k.unsqueeze(2)) ** 2).sum(-1).softmax(-1) @ v


def values_with_a_factor(q, k, v, m, mod):
    w = scores_of(q, k).nan_to_num().softmax(-1)
    return torch.einsum("bhij,bhjd,bhj->bhid", w, v, k.sum(-1))


def values_by_a_layer(q, k, v, m, mod):
    w = scores_of(q, k).nan_to_num().softmax(-1)
    rows = [F.linear(w[i, j], v[i, j].mT) for i in range(w.shape[0]) for j in range(w.shape[1])]
    return torch.stack(rows).view(*w.shape[:3], -1)


def gate_after(q, k, v, m, mod):
    return (scores_of(q, k).softmax(-1) * mod.temperature.sigmoid()) @ v


def multiplied_mask(q, k, v, m, mod):
    keep = mod.lower[:, :, : q.shape[2], : k.shape[2]]
    return (scores_of(q, k) * keep - 1e5 * (1 - keep)).softmax(-1) @ v


def two_products(q, k, v, m, mod):
    """Content and position, each a product of its own."""
    places = mod.k(torch.linspace(0, 1, k.shape[2]).to(q)[:, None].expand(-1, mod.H * mod.d))
    places = places.view(-1, mod.H, mod.d).transpose(0, 1)
    return (scores_of(q, k) + 0.3 * q @ places.mT).softmax(-1) @ v


def joined_products(q, k, v, m, mod):
    """The first two keys and the rest have queries of their own."""
    first, rest = (q * 0.4) @ k[:, :, :2].mT, (q.flip(-1) * 0.4) @ k[:, :, 2:].mT
    return torch.cat([first, rest], -1).softmax(-1) @ v


def joint_softmax(q, k, v, m, mod):
    """One softmax over the keys and their neighbours, two products with values."""
    both = torch.cat([scores_of(q, k), scores_of(q, k.roll(1, 2))], -1)
    near, far = both.softmax(-1).split(k.shape[2], -1)
    return near @ v + far @ v.roll(1, 2)


def factor_per_key(q, k, v, m, mod):
    return (scores_of(q, k) * torch.linspace(0.5, 2, k.shape[2])).softmax(-1) @ v


def bias_on_turned_logits(q, k, v, m, mod):
    scores = (k @ q.mT) * 0.4  # [B, H, S, T]
    scores = scores + mod.table[:, : k.shape[2], : q.shape[2]]
    return (scores.softmax(-2).mT) @ v


def keys_per_query(q, k, v, m, mod):
    """Every query has keys of its own: those from it on, around."""
    own = torch.stack([k.roll(-i, 2) for i in range(q.shape[2])], 2)[:, :, :, :3]
    values = torch.stack([v.roll(-i, 2) for i in range(q.shape[2])], 2)[:, :, :, :3]
    scores = torch.einsum("bhid,bhijd->bhij", q * 0.4, own)
    return torch.einsum("bhij,bhijd->bhid", scores.softmax(-1), values)


def values_of_two_axes(q, k, v, m, mod):
    pairs = v.unflatten(-1, (2, -1))
    return torch.einsum("bhij,bhjcd->bhicd", scores_of(q, k).softmax(-1), pairs).flatten(-2)


def latest_weights(q, k, v, m, mod):
    """Only the last queries meet the values; the others are left out."""
    weights = scores_of(q, k).softmax(-1)
    return F.pad(weights[:, :, 2:] @ v, (0, 0, 2, 0))


class TiedRows(nn.Module):
    """One map for all rows of an alignment: the product sums over rows and features."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.H, self.d, self.R = sizes.H, sizes.d, 3
        self.q, self.k, self.v, self.o = (nn.Linear(sizes.D, sizes.D) for _ in range(4))
        self.rows = nn.Parameter(torch.randn(self.R, 1, 1))

    def forward(self, x):
        x = x.unsqueeze(1) * self.rows  # [B, R, T, D]
        q, k, v = (f(x).unflatten(-1, (self.H, self.d)) for f in (self.q, self.k, self.v))
        w = (torch.einsum("brihd,brjhd->bhij", q, k) * 0.2).softmax(-1)
        return self.o(torch.einsum("bhij,brjhd->brihd", w, v).flatten(3)).mean(1)


class FewKeys(nn.Module):
    """Linformer: a linear layer over the tokens makes fewer keys and values of them."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(sizes.D, sizes.D) for _ in range(4))
        self.fewer = nn.Linear(sizes.T, 3)

    def forward(self, x):
        k, v = (self.fewer(f(x).mT).mT for f in (self.k, self.v))
        return self.o((self.q(x) @ k.mT * 0.3).softmax(-1) @ v)


class MadeTokens(nn.Module):
    """A linear layer makes the keys' tokens from one vector."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(sizes.D, sizes.D) for _ in range(4))
        self.tokens = nn.Linear(sizes.D, 4 * sizes.D)

    def forward(self, x):
        context = self.tokens(x.mean(1)).unflatten(-1, (4, -1))
        return self.o((self.q(x) @ self.k(context).mT * 0.3).softmax(-1) @ self.v(context))


class Latents(nn.Module):
    """Learned latents ask, and stand among the keys; an einsum with an ellipsis."""

    def __init__(self, sizes=DISTINCT):
        super().__init__()
        self.H, self.latents = sizes.H, nn.Parameter(torch.randn(sizes.T, sizes.D))
        self.q, self.kv = nn.Linear(sizes.D, sizes.D), nn.Linear(sizes.D, 2 * sizes.D)

    def forward(self, x):
        latents = self.latents.expand(x.shape[0], -1, -1)
        k, v = self.kv(torch.cat([x, latents], 1)).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.H, -1)).movedim(-2, -3) for y in (self.q(latents), k, v))
        scores = torch.einsum("...id,...jd->...ij", q * 0.25, k)
        return torch.einsum("...ij,...jd->...id", scores.softmax(-1), v).transpose(1, 2).flatten(2)


class Band(nn.Module):
    """Logits of a sliding window stored by diagonals, written one by one."""

    def __init__(self, sizes=DISTINCT, reach=1):
        super().__init__()
        self.reach, self.qkv = reach, nn.Linear(sizes.D, 3 * sizes.D)

    def forward(self, x):
        reach, width = self.reach, 2 * self.reach + 1
        q, k, v = self.qkv(x).chunk(3, -1)
        full = F.pad(torch.einsum("bid,bjd->bij", q, k) * 0.2, (reach, reach))
        band = full.new_empty(*x.shape[:2], width)
        for i in range(x.shape[1]):
            band[:, i] = full[:, i, i : i + width]
        near = F.pad(v, (0, 0, reach, reach)).unfold(1, width, 1)  # [B, T, D, width]
        return torch.einsum("bto,btdo->btd", band.softmax(-1), near)


FUNCTIONS = (
    numbers_only,
    clamped_both,
    bias_into_a_slice,
    written_by_index,
    written_by_flags,
    filled_after,
    number_after,
    gate_after,
    multiplied_mask,
    two_products,
    joined_products,
    joint_softmax,
    factor_per_key,
    bias_on_turned_logits,
    keys_per_query,
    values_of_two_axes,
    latest_weights,
    combined_over_places,
    combined_over_places_after,
    heads_through_layers,
    difference_of_heads,
    normed_scores,
    distances,
    part_of_a_bias,
    largest_scattered,
    one_query_by_hand,
    sums_of_features,
    sums_of_numbers,
    squared_differences,
    values_with_a_factor,
    values_by_a_layer,
)

MODULES = (TiedRows, FewKeys, MadeTokens, Latents, Band)

LOOSE = {f.__name__: lambda sizes, f=f: Attention(f, sizes) for f in FUNCTIONS} | {
    m.__name__: m for m in MODULES
}
"""By name what builds each of them for given sizes; all take one tensor ``[B, T, D]``."""
