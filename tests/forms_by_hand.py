"""The forms as float64 mathematics written from the design, and the check of a module against it.

Nothing here imports the code that it checks.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tolerance import GRADIENT, assert_near

from attnpass.kernels.tile import Tile
from attnpass.site import AttentionSite

ALL_H = ("sigmoid", "relu", "relu2", "gelu", "softplus", "identity", "relu6")
FUSED, ATEN = Tile(block_m=4, block_n=3), Tile("aten")
B, H, T, S, D, DV = 2, 4, 5, 7, 6, 3
LOWEST = torch.finfo(torch.float32).min
WIDTH = 8


TILES = pytest.mark.parametrize("tile", [None, ATEN, FUSED], ids=["chosen", "aten", "fused"])


def h_of(name, x):
    if name == "sigmoid":
        return 1 / (1 + torch.exp(-x))
    if name == "relu":
        return x.clamp_min(0)
    if name == "relu2":
        return x.clamp_min(0) ** 2
    if name == "gelu":
        return 0.5 * x * (1 + torch.special.erf(x / math.sqrt(2)))
    if name == "softplus":
        return torch.log1p(torch.exp(x))
    if name == "relu6":
        return x.clamp(0, 6)
    assert name == "identity"
    return x


def head_of_group(x, heads):
    """Query head i reads key/value head i // (H / G)."""
    group = heads // x.shape[1]
    return torch.stack([x[:, i // group] for i in range(heads)], dim=1)


def kept(q, k, keep, causal):
    full = torch.ones(q.shape[0], q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
    for t in range(q.shape[2]):
        if causal:
            full[:, :, t, t + 1 :] = False
    return full if keep is None else full & keep


def pointwise_by_hand(p, q, k, v, bias, keep, *, h, scale, causal, length, alpha):
    """``g L^-a h(tau s + b) v``, for sigmoid ``g sigmoid(tau s + b - log L) v``; p: parameters."""
    heads = q.shape[1]
    mask = kept(q, k, keep, causal)
    k = head_of_group(k - p["k0"][None, :, None, :], heads)
    v = head_of_group(v, heads)
    s = scale * torch.einsum("bhtd,bhsd->bhts", q, k)
    if bias is not None:
        s = s + bias
    if length == "keys":
        n = torch.full((1, 1, 1, 1), float(k.shape[2]), dtype=torch.float64)
    elif length == "visible":
        n = mask.sum(-1, keepdim=True).double().clamp_min(1)
    else:
        n = torch.full((1, 1, 1, 1), float(length), dtype=torch.float64)
    s = s * p["log_tau"].exp()[None, :, None, None] if "log_tau" in p else s
    s = s + p["b"][None, :, None, None]
    factor = p["gain"][None, :, None, None]
    if h == "sigmoid":
        s = s - n.log()
    else:
        factor = factor * n**-alpha
    weights = torch.where(mask, h_of(h, s), 0.0)
    return factor * torch.einsum("bhts,bhsd->bhtd", weights, v)


def softmax_by_hand(q, k, v, bias, keep, *, scale, causal, fill):
    heads = q.shape[1]
    k, v = head_of_group(k, heads), head_of_group(v, heads)
    s = scale * torch.einsum("bhtd,bhsd->bhts", q, k)
    s = s if bias is None else s + bias
    mask = kept(q, k, keep, causal)
    s = s.masked_fill(~mask, -math.inf if fill is None else fill)
    if fill is None:
        s = s.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    top = s.amax(-1, keepdim=True)
    e = torch.exp(s - top)
    weights = e / e.sum(-1, keepdim=True)
    if fill is None:
        weights = weights * mask.any(-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def hydra_by_hand(p, q, k, v, keep, *, causal, eps=1e-6):
    """Over rows of all D = H d features, one token after the other."""
    heads = q.shape[1]
    k, v = head_of_group(k, heads), head_of_group(v, heads)
    b, _, t, d = q.shape
    rows_q, rows_k, rows_v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))  # [B, N, D]

    def unit(x):
        return x / torch.sqrt((x * x).sum(-1, keepdim=True).clamp_min(eps))

    products = unit(rows_k) * rows_v
    if keep is not None:
        products = torch.where(keep[:, 0, 0, :, None], products, 0.0)
    out = []
    for i in range(t):
        seen = products[:, : i + 1] if causal else products
        out.append(unit(rows_q[:, i]) * seen.sum(1) * p["gain"])
    return torch.stack(out, 1).view(b, t, heads, d).transpose(1, 2)


def skipat_by_hand(p, z, keep, *, kernel, grid, prefix, causal):
    """Linear, GELU, (masked rows zeroed), depthwise convolution, GELU, Linear, ECA."""
    x = z[:, prefix:]
    b, n, _ = x.shape
    mask = torch.ones(b, n, dtype=torch.bool)
    if keep is not None:
        mask = keep[:, 0, 0, prefix:].expand(b, n)
    x = h_of("gelu", x @ p["up.weight"].T + p["up.bias"])
    x = x * mask[..., None]
    weight, half = p["conv.weight"], kernel // 2
    y = []
    for i in range(n):
        total = p["conv.bias"].expand(b, -1)
        if grid is None:
            first = i - (kernel - 1) if causal else i - half
            for j in range(kernel):
                if 0 <= first + j < n:
                    total = total + weight[:, 0, j] * x[:, first + j]
        else:
            row, column = divmod(i, grid[1])
            for dr in range(-half, half + 1):
                for dc in range(-half, half + 1):
                    r, c = row + dr, column + dc
                    if 0 <= r < grid[0] and 0 <= c < grid[1]:
                        total = total + weight[:, 0, dr + half, dc + half] * x[:, r * grid[1] + c]
        y.append(total)
    y = h_of("gelu", torch.stack(y, 1)) @ p["down.weight"].T + p["down.bias"]
    out = []
    for i in range(n):
        end = i + 1 if causal else n
        count = mask[:, :end].sum(1, keepdim=True).clamp_min(1)
        mean = (y[:, :end] * mask[:, :end, None]).sum(1) / count  # [B, D]
        left, right = F.pad(mean, (1, 0))[:, :-1], F.pad(mean, (0, 1))[:, 1:]
        w = p["eca.weight"][0, 0]
        out.append(y[:, i] * h_of("sigmoid", w[0] * left + w[1] * mean + w[2] * right))
    return torch.cat([z[:, :prefix], torch.stack(out, 1)], 1)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(module, seed=1):
    """Every parameter off its start: a parameter that is ignored must show."""
    g = draw(seed)
    for x in module.parameters():
        x.data = x.data + 0.3 * torch.randn(x.shape, generator=g)
    return module


def attention_inputs(g=H, t=T, s=S, d=D, dv=D, dtype=torch.float32, seed=0):
    r = draw(seed)
    # [B, T, H, d] as models lay them out
    q = torch.randn(B, t, H, d, generator=r).to(dtype).transpose(1, 2)
    k = torch.randn(B, s, g, d, generator=r).to(dtype).transpose(1, 2)
    v = torch.randn(B, s, g, dv, generator=r).to(dtype).transpose(1, 2)
    return [x.detach().requires_grad_() for x in (q, k, v)]


def leaf(x):
    return None if x is None else x.detach().double().requires_grad_()


def check(module, inputs, by_hand, extra=None, terms=1.0, compute=None):
    """Forward, and the gradient of every input and parameter, none of which may be None."""
    wide = [leaf(x) for x in inputs]
    parameters = {n: leaf(p) for n, p in module.named_parameters()}
    out = module(*inputs) if extra is None else module(*inputs, *extra)
    want = by_hand(parameters, *wide)
    assert_near(out, want, terms=terms, compute=compute)
    grad = torch.randn(want.shape, generator=draw(9), dtype=torch.float64)
    module.zero_grad()
    for x in inputs:
        x.grad = None
    out.backward(grad.to(out.dtype))
    wanted = torch.autograd.grad(
        want, [*wide, *parameters.values()], grad.to(out.dtype).double(), allow_unused=True
    )
    got = {f"input {i}": x.grad for i, x in enumerate(inputs)}
    got |= {n: p.grad for n, p in module.named_parameters()}
    for (name, g), w in zip(got.items(), wanted, strict=True):
        assert g is not None, f"{name} received no gradient"
        w = torch.zeros_like(g, dtype=torch.float64) if w is None else w
        assert_near(g, w, terms=2 * GRADIENT, compute=compute, name=f"d {name}")
    return out


def keep_of(shape, seed=3):
    keep = torch.rand(shape, generator=draw(seed)) < 0.6
    keep[..., 0] = True
    return keep


def bias_of(shape, seed=4):
    return torch.randn(shape, generator=draw(seed))


def site(**changes):
    given = {
        "name": "blocks.0.attn",
        "kind": "self",
        "heads": H,
        "kv_heads": 2,
        "head_dim": D,
        "value_dim": D,
        "query_len": T,
        "key_len": S,
        "scale": 0.3,
        "width": WIDTH,
    }
    return AttentionSite(**(given | changes))
