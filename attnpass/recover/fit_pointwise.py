"""Temperature, shift and gain of a pointwise form, fitted to the outputs of softmax.

Softmax divides every row by its sum, a pointwise form cannot. The shift t that gives a row a
wanted mass, ``sum h(tau s - t) = mass``, is solved row by row and regressed on the row's query:
``k0`` and ``b`` are the slope and the offset. Temperature and mass come from a small grid.
Shapes: B batch, H query heads, G key/value heads, S keys, d head dim, n and m rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnpass.forms import Pointwise
from attnpass.kernels.activations import H
from attnpass.recover.fit_gain import moments, update_gain
from attnpass.recover.samples import MASKED_LOGIT, MapSample, Sample

LOG_TEMPERATURES = (-0.25, 0.0, 0.25)
"""Values of ``log_tau`` that are tried."""

MASSES = {"sigmoid": (0.1, 0.3, 1.0, 2.0), "relu": (2.0, 8.0, 32.0, 128.0, 512.0)}
"""Values that are tried for the sum of a row's weights before the gain, by form."""

RIDGE = 1e-2
"""Ridge of the regression of shifts, relative to the queries' variance."""

STEPS, CLOSE = 30, 1e-4
"""Steps at most of solving shifts, which end where every row has its mass but for this share, or
its shift within as much."""

AT_ONCE = 2**16
"""Logits whose shifts a CPU solves at a time: so many stay in its cache."""


def fit_pointwise(form: Pointwise, samples: Sequence[Sample | MapSample]) -> None:
    """Fit per head the temperature and mass with the least error, and their shift and gain.

    Heads that share ``k0``, one key/value head, share temperature and mass.
    """
    assert form.b is not None and form.gain is not None
    log_taus = (0.0,) if form.log_tau is None else LOG_TEMPERATURES
    groups = form.b.shape[0] if form.k0 is None else form.k0.shape[0]
    least_error = form.b.new_full((groups,), math.inf, dtype=torch.float64)
    best: list[Tensor] = []
    mean = None if form.k0 is None else mean_key(samples)
    masses = MASSES["sigmoid" if form.h == "sigmoid" else "relu"]
    for log_tau, mass in itertools.product(log_taus, masses):
        form.gain.fill_(1.0)
        if form.log_tau is not None:
            form.log_tau.fill_(log_tau)
        fit_shift(form, samples, mass, mean)
        dot, power = moments(form, samples, (0, 2, 3))
        # |y - g f|^2 at the best g is |y|^2 - dot^2 / power
        error = torch.where(power > 0, -dot * dot / power.clamp_min(1e-30), 0.0)
        error = error.view(groups, -1).sum(1)
        update_gain(form.gain, dot, power)
        values = [p.detach().clone() for p in form.parameters()]
        better = (error < least_error) & torch.isfinite(error)
        least_error = torch.where(better, error, least_error)
        best = [
            _where_better(better, new, old)
            for new, old in zip(values, best or values, strict=True)
        ]
    for p, value in zip(form.parameters(), best, strict=True):
        p.copy_(value)


def _where_better(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` in the groups of heads, or of key/value heads, that are ``better``; else ``old``."""
    chosen = better.repeat_interleave(new.shape[0] // len(better))
    return torch.where(chosen.view(-1, *(1,) * (new.dim() - 1)), new, old)


def mean_key(samples: Sequence[Sample | MapSample]) -> Tensor:
    """Mean ``[G, d]`` of the keys that are no padding."""
    with_keys = (s for s in samples if isinstance(s, Sample))
    sums, counts = zip(*(_key_sums(s) for s in with_keys), strict=True)
    mean: Tensor = torch.stack(sums).sum(0) / torch.stack(counts).sum().clamp_min(1)
    return mean


def _key_sums(sample: Sample) -> tuple[Tensor, Tensor]:
    """Sum ``[G, d]`` of the keys that are no padding, and their number."""
    k = sample.k.double()
    if sample.padding is not None:
        kept = sample.padding.expand(k.shape[0], -1, -1, -1)
        weight = kept.transpose(-1, -2).double()  # [B, 1, S, 1]
        return (k * weight).sum((0, 2)), weight.sum()
    return k.sum((0, 2)), k.new_tensor(k.shape[0] * k.shape[2])


def fit_shift(
    form: Pointwise, samples: Sequence[Sample | MapSample], mass: float, mean: Tensor | None
) -> None:
    """Fit ``b`` and ``k0`` by ridge regression of the rows' shifts on their queries.

    ``k0`` starts from the ``mean`` key, the answer where the logits of a row vary little.
    """
    assert form.b is not None
    heads = form.b.shape[0]
    if form.k0 is not None and mean is not None:
        form.k0.copy_(mean.to(form.k0.dtype))
    tau = 1.0 if form.log_tau is None else float(form.log_tau[0].exp())
    rows = [_shifts(form, sample, tau, mass) for sample in samples]
    # [H, n, d + 2]: queries, shift, whether the row counts
    table = torch.cat([x.transpose(0, 1).flatten(1, 2) for x in rows], 1)
    weight = table[..., -1:]
    values = torch.where(weight > 0, table[..., :-1], 0.0)
    mean_row = values.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
    if form.k0 is not None:
        groups = form.k0.shape[0]
        centred = ((values - mean_row) * weight).view(groups, -1, values.shape[-1])
        slope = _ridge_slope(centred[..., :-1], centred[..., -1:])
        form.k0.add_((slope / (tau * form.scale)).to(form.k0.dtype))
        slope = slope.repeat_interleave(heads // groups, 0)
        mean_row[..., -1] -= (mean_row[..., :-1] * slope.unsqueeze(1)).sum(-1)
    form.b.copy_(-mean_row[:, 0, -1].to(form.b.dtype))


def _ridge_slope(queries: Tensor, shifts: Tensor) -> Tensor:
    """Slope ``[G, d]`` of shifts ``[G, n, 1]`` over queries ``[G, n, d]``, both centred."""
    gram = queries.transpose(1, 2) @ queries
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
    slope: Tensor = torch.linalg.solve(gram, queries.transpose(1, 2) @ shifts).squeeze(-1)
    return slope


def _shifts(form: Pointwise, sample: Sample | MapSample, tau: float, mass: float) -> Tensor:
    """Some rows, each with its query, its shift and whether it counts: ``[b, H, m, d + 2]``."""
    queries, x, length, counts = sample.logit_rows(form)
    longest = float(x.shape[-1] if isinstance(form.length, str) else form.length)
    x, wanted = tau * x, mass * (length / longest).pow(form.alpha)
    if form.h == "sigmoid":
        x, wanted = x - length.log(), torch.full_like(length, mass)
    shift = solve_shift(H[form.h].value, x, wanted)
    sees_a_key = torch.isfinite(x).any(-1, keepdim=True)
    counted = sees_a_key if counts is None else sees_a_key & counts
    return torch.cat([queries.double(), shift.double(), counted.double()], -1)


def solve_shift(h: Callable[[Tensor], Tensor], x: Tensor, mass: Tensor | float) -> Tensor:
    """``t [..., 1]`` with ``sum h(x - t) = mass`` over the finite ``x [..., S]``, mass above 0."""
    rows, goal = x.reshape(-1, x.shape[-1]), torch.as_tensor(mass, dtype=x.dtype, device=x.device)
    goals = goal.expand(*x.shape[:-1], 1).reshape(-1, 1)
    few = max(AT_ONCE // max(x.shape[-1], 1), 1) if x.device.type == "cpu" else max(len(rows), 1)
    parts = zip(rows.split(few), goals.split(few), strict=True)
    return torch.cat([_solved(h, x, mass) for x, mass in parts]).view(*x.shape[:-1], 1)


def _solved(h: Callable[[Tensor], Tensor], x: Tensor, mass: Tensor) -> Tensor:
    """As ``solve_shift``, of rows ``[n, S]`` and masses ``[n, 1]``.

    By false position on the logarithm of the sum, which is nearly straight for small sums, where
    a bound that stays counts for less and less (the Illinois method); by halves where that is
    slow.
    """
    finite = torch.isfinite(x)
    seen, some = torch.where(finite, x, 0.0), finite.any(-1, keepdim=True)
    low = seen.amin(-1, keepdim=True) - mass - 1
    high = seen.amax(-1, keepdim=True) + math.log1p(x.shape[-1] / 0.1)
    vanishes = float(h(x.new_tensor([2 * MASKED_LOGIT]))) == 0.0
    seen = torch.where(finite, x, low + 2 * MASKED_LOGIT) if vanishes else seen

    def excess(t: Tensor) -> Tensor:
        values = h(seen - t)
        values = values if vanishes else torch.where(finite, values, 0.0)
        return (values.sum(-1, keepdim=True) / mass).clamp_min(1e-6).log()

    above, below = excess(low).clamp_min(1e-6), excess(high).clamp_max(-1e-6)
    found, side, done = (low + high) / 2, torch.zeros_like(mass), ~some
    for i in range(STEPS):
        span = high - low
        middle = low + span * (above / (above - below)).clamp(0.01, 0.99)
        middle = torch.where(span > 0.5 ** (i // 3) * 1e2, (low + high) / 2, middle)
        left = excess(middle)
        found = torch.where(done, found, middle)  # whatever other rows still need
        done = done | (left.abs() < CLOSE) | (span < CLOSE)
        if bool(done.all()):
            break
        over = left > 0
        below = torch.where(over & (side > 0), below / 2, below)
        above = torch.where(~over & (side < 0), above / 2, above)
        low, above = torch.where(over, middle, low), torch.where(over, left, above)
        high, below = torch.where(over, high, middle), torch.where(over, below, left)
        side = torch.where(over, 1.0, -1.0)
    return found
