"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

Seconds, a few unlabelled batches, no gradients. Every site is fitted to the original model's own
activations, so a fit does not depend on which other sites are converted.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from attnpass.forms import Pointwise
from attnpass.kernels.activations import H
from attnpass.recover.fit_gain import _fit_gain, _moments
from attnpass.recover.samples import MapSample, Sample

TEMPERATURES = (-0.25, 0.0, 0.25)

MASSES = ((2.0, 8.0, 32.0, 128.0, 512.0), (0.1, 0.3, 1.0, 2.0))
"""What a row's weights may sum to before the gain: relu's family, sigmoid."""

SHRINK = 1e-2
"""Of the regression of shifts, relative to the queries' variance."""


def _fit_pointwise(module: Pointwise, samples: Sequence[Sample | MapSample]) -> None:
    """Per head tau and the rows' mass from a small grid with the least error; then g.

    Softmax divides every row by its sum, these forms cannot. What a row would have to be shifted
    by for its weights to have a given mass is regressed on its query: k0 and b.
    """
    assert module.b is not None and module.gain is not None
    taus = (0.0,) if module.log_tau is None else TEMPERATURES
    groups = module.b.shape[0] if module.k0 is None else module.k0.shape[0]
    least = module.b.new_full((groups,), math.inf, dtype=torch.float64)
    kept: list[Tensor] = []
    mean = None if module.k0 is None else _mean_key(samples)
    for log_tau, mass in itertools.product(taus, MASSES[module.h == "sigmoid"]):
        module.gain.fill_(1.0)
        if module.log_tau is not None:
            module.log_tau.fill_(log_tau)
        _fit_shift(module, samples, mass, mean)
        dot, power = _moments(module, samples, (0, 2, 3))
        # |y - g f|^2 at the best g is |y|^2 - dot^2 / power
        error = torch.where(power > 0, -dot * dot / power.clamp_min(1e-30), 0.0)
        error = error.view(groups, -1).sum(1)
        _fit_gain(module.gain, dot, power)
        found = [p.detach().clone() for p in module.parameters()]
        better = (error < least) & torch.isfinite(error)
        least = torch.where(better, error, least)
        kept = [_where(better, new, old) for new, old in zip(found, kept or found, strict=True)]
    for p, value in zip(module.parameters(), kept, strict=True):
        p.copy_(value)


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` in the groups of heads, or of key/value heads, that are ``better``."""
    chosen = better.repeat_interleave(new.shape[0] // len(better))
    return torch.where(chosen.view(-1, *(1,) * (new.dim() - 1)), new, old)


def _mean_key(samples: Sequence[Sample | MapSample]) -> Tensor:
    """Per key/value head, over the keys that are not masked."""
    known = (s for s in samples if isinstance(s, Sample))
    sums, counts = zip(*(_key_sums(s) for s in known), strict=True)
    mean: Tensor = torch.stack(sums).sum(0) / torch.stack(counts).sum().clamp_min(1)
    return mean


def _fit_shift(
    module: Pointwise, samples: Sequence[Sample | MapSample], mass: float, mean: Tensor | None
) -> None:
    """B and k0 by ridge regression of the shifts that give rows a mass, on their queries.

    k0 starts from the ``mean`` key, which is the answer where logits of a row vary little.
    """
    assert module.b is not None
    heads = module.b.shape[0]
    if module.k0 is not None and mean is not None:
        module.k0.copy_(mean.to(module.k0.dtype))
    tau = 1.0 if module.log_tau is None else float(module.log_tau[0].exp())
    rows: list[Tensor] = []  # [H, n, d + 2]: queries, shift, whether it counts
    for s in samples:
        rows += [x.transpose(0, 1).flatten(1, 2) for x in _shifts(module, s, tau, mass)]
    found = torch.cat(rows, 1)
    weight = found[..., -1:]
    values = torch.where(weight > 0, found[..., :-1], 0.0)
    middle = values.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
    if module.k0 is not None:
        groups = module.k0.shape[0]
        centred = ((values - middle) * weight).view(groups, -1, values.shape[-1])
        q, shift = centred[..., :-1], centred[..., -1:]
        gram = q.transpose(1, 2) @ q
        ridge = SHRINK * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        gram.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
        slope = torch.linalg.solve(gram, q.transpose(1, 2) @ shift).squeeze(-1)  # [G, d]
        module.k0.add_((slope / (tau * module.scale)).to(module.k0.dtype))
        slope = slope.repeat_interleave(heads // groups, 0)
        middle[..., -1] -= (middle[..., :-1] * slope.unsqueeze(1)).sum(-1)
    module.b.copy_(-middle[:, 0, -1].to(module.b.dtype))


def _shifts(module: Pointwise, s: Sample | MapSample, tau: float, mass: float) -> Iterator[Tensor]:
    """Of some rows the query, the shift and whether the row counts: ``[b, H, m, d + 2]``."""
    h = H[module.h][0]
    for q, x, length, rows in s.logits(module):
        most = float(x.shape[-1] if isinstance(module.length, str) else module.length)
        x, wanted = tau * x, mass * (length / most).pow(module.alpha)
        if module.h == "sigmoid":
            x, wanted = x - length.log(), torch.full_like(length, mass)
        shift = _solve_shift(h, x, wanted)
        counts = torch.isfinite(x).any(-1, keepdim=True)
        if rows is not None:
            counts = counts & rows
        yield torch.cat([q.double(), shift.double(), counts.double()], -1)


def _solve_shift(h: Callable[[Tensor], Tensor], x: Tensor, mass: Tensor | float) -> Tensor:
    """``t [..., 1]`` with ``sum h(x - t) = mass`` over the finite ``x [..., S]``, by bisection."""
    finite = torch.isfinite(x)
    x = torch.where(finite, x, 0.0)
    low = x.amin(-1, keepdim=True) - mass - 1
    high = x.amax(-1, keepdim=True) + math.log1p(x.shape[-1] / 0.1)
    for _ in range(30):
        middle = (low + high) / 2
        over = torch.where(finite, h(x - middle), 0.0).sum(-1, keepdim=True) > mass
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (low + high) / 2


def _key_sums(s: Sample) -> tuple[Tensor, Tensor]:
    """Sum of keys ``[G, d]`` and their number, over kept positions where the mask is padding."""
    k = s.k.double()
    if s.padding is not None:
        weight = (
            s.padding.expand(k.shape[0], -1, -1, -1).transpose(-1, -2).double()
        )  # [B, 1, S, 1]
        return (k * weight).sum((0, 2)), weight.sum()
    return k.sum((0, 2)), k.new_tensor(k.shape[0] * k.shape[2])
