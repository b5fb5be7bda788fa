"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

Seconds, a few unlabelled batches, no gradients. Every site is fitted to the original model's own
activations, so a fit does not depend on which other sites are converted.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.capture import (
    Batch,
    Capture,
    buffers_kept,
    call,
    check_batches,
)
from attnpass.forms import Hydra, Pointwise, SkipAt, linear_as
from attnpass.kernels.tiled import H
from attnpass.observe import Block, MapSample, Observed, Sample, observe
from attnpass.plan import Plan

TEMPERATURES = (-0.25, 0.0, 0.25)
MASSES = ((2.0, 8.0, 32.0, 128.0, 512.0), (0.1, 0.3, 1.0, 2.0))
"""What a row's weights may sum to before the gain: relu's family, sigmoid."""

RIDGE = 3e-2
"""Of skipat's regressions, relative to the inputs' variance."""

LINEAR = 2.0
"""Mean, in deviations, of what skipat's GELUs get: there they are nearly straight."""

TAPS = 0.3
"""Norm of the random part of skipat's first convolution, beside 1 at a row itself."""

SHRINK = 1e-2
"""Of the regression of shifts, relative to the queries' variance."""


def calibrate(
    model: nn.Module,
    plan: Plan,
    inputs: Iterable[Batch],
    *,
    allow: Collection[str] = (),
) -> dict[str, float]:
    """Fit every converted site of ``plan`` in place, from unlabelled batches; no training.

    Args:
        model: the original model, in the mode in which it will run. It is not changed.
        plan: of this model. inputs: batches, each the positional arguments of a call (a tuple)
            or its named ones (a dict); up to ``ITEMS`` items are used, ``BLOCKS`` for skipat.
            Frozen parameters stay. allow: what the caller accepts (``site.ALLOW``).

    Returns:
        Per converted site ``|form - softmax|^2 / |softmax|^2`` over the attention's output, over
        its weights where only the softmax node is exchanged (soft cap, talking heads). NaN where
        nothing could be observed (an attention sink).

    Raises:
        OptionError: no inputs, or no batches. CaptureError: the model cannot be captured.
        PlanError: an entry of the plan does not fit the model.
    """
    batches = list(inputs)
    check_batches(batches, "calibrate")
    with buffers_kept(model):
        capture = call(Capture(model, allow=allow).trace, batches[0])
        capture.use(plan, strict=True)
        blocks = any(e.form == "skipat" for e in plan.sites.values())
        plan.measured = {}  # with other values
        return fit_sites(capture, plan, observe(capture, batches, blocks=blocks))


def fit_sites(capture: Capture, plan: Plan, observed: Observed) -> dict[str, float]:
    """Fit every converted site of ``plan`` in place; returns the relative error left per site.

    The error is ``|form - softmax|^2 / |softmax|^2`` over the observed outputs.
    """
    errors = {}
    with torch.no_grad():
        for site in capture.sites:
            samples = observed.samples.get(site.name, [])
            blocks = observed.blocks.get(site.name, [])
            seen = [s.out.device for s in samples] + [z.device for z, _, _ in blocks]
            module = plan.module(site, device=seen[0] if seen else None)
            if module is not None:
                errors[site.name] = fit(module, samples, blocks)
    return errors


def fit(
    module: nn.Module,
    samples: Sequence[Sample | MapSample],
    blocks: Sequence[Block] = (),
) -> float:
    """Fit one form's parameters to what softmax gave; returns the relative error left.

    Parameters that are frozen stay.
    """
    if isinstance(module, (forms.Softmax, forms.SoftmaxWeights)):
        return 0.0
    # another graph may exchange more, or less, of the same attention
    maps = isinstance(module, forms.Weights)
    samples = [s for s in samples if isinstance(s, MapSample) == maps]
    learns = any(p.requires_grad for p in module.parameters())
    if not (blocks if isinstance(module, SkipAt) else samples):
        return math.nan
    if isinstance(module, SkipAt):
        return _fit_skipat(module, blocks, learns)
    if learns and isinstance(module, Pointwise) and module.b is not None:
        _fit_pointwise(module, samples)
    elif learns and isinstance(module, Hydra) and module.gain is not None:
        _fit_gain(module.gain, *_moments(module, samples, (0, 2)))
    return _error(module, samples)


def _moments(
    module: nn.Module, samples: Sequence[Sample | MapSample], dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """``sum out * form`` and ``sum form^2`` over ``dims`` of all samples, in float64."""
    dot = power = samples[0].out.new_zeros((), dtype=torch.float64)
    for s in samples:
        y = s.run(module).double()
        if s.rows is not None:
            y = y * s.rows
        dot = dot + (s.out.double() * y).nan_to_num().sum(dims)
        power = power + y.square().sum(dims)
    return dot, power


def _fit_gain(gain: Tensor, dot: Tensor, power: Tensor) -> None:
    """Least squares: the gain that brings the form nearest to the target."""
    value = torch.where(power > 0, dot / power.clamp_min(1e-30), torch.ones_like(dot))
    gain.copy_((gain.double() * value.reshape(gain.shape)).to(gain.dtype))


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


def _fit_skipat(module: SkipAt, blocks: Sequence[Block], learns: bool) -> float:
    """The nearest linear map of rank rD, then ridge regression of the last linear; no gate yet.

    GELU is nearly linear where its input is ``LINEAR`` deviations above 0; Phi bends from there.
    """
    wide = torch.promote_types(blocks[0][0].dtype, torch.float32)
    inputs = [
        (z[:, module.prefix :].to(wide), rows_kept(keep, module.prefix)) for z, _, keep in blocks
    ]
    wanted = [
        _kept(y[:, module.prefix :], rows).double()
        for (_, y, _), (_, rows) in zip(blocks, inputs, strict=True)
    ]
    if learns:
        linear = _ridge([_kept(x, rows).double() for x, rows in inputs], wanted)[:-1]
        found = torch.cat([_kept(x, rows) for x, rows in inputs]).double() @ linear
        _, directions = torch.linalg.eigh(torch.cov(found.T))
        known = (linear @ directions.flip(1)).T[: module.hidden]  # reduced-rank regression
        module.up.weight[: len(known)].copy_(known)
        _standardise(module.up, [_kept(linear_as(module.up, x), rows) for x, rows in inputs])
        taps = module.conv.weight.flatten(1)
        own = taps.shape[1] - 1 if module.causal else taps.shape[1] // 2
        taps.mul_(TAPS / taps.square().sum(1).mean().sqrt()).select(1, own).add_(1.0)
        module.conv.weight.copy_(taps.view_as(module.conv.weight))
        _standardise(module.conv, [_kept(module._mixed(x, rows), rows) for x, rows in inputs])
        features = [_kept(module._features(x, rows), rows).double() for x, rows in inputs]
        solved = 2 * _ridge(features, wanted)  # the gate halves
        module.down.weight.copy_(solved[:-1].T)
        module.down.bias.copy_(solved[-1])
        module.eca.weight.zero_()
    left = 0.0
    for (z, _, keep), (_, rows), y in zip(blocks, inputs, wanted, strict=True):
        got = _kept(module(z, keep)[:, module.prefix :], rows)
        left += float((got.double() - y).square().sum())
    return left / max(sum(float(y.square().sum()) for y in wanted), 1e-30)


def _ridge(inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The linear map ``[D + 1, E]``, its last row the offset, from rows to ``wanted`` rows."""
    gram = right = inputs[0].new_zeros(())
    for x, y in zip(inputs, wanted, strict=True):
        x = torch.cat([x, torch.ones_like(x[:, :1])], -1)
        gram, right = gram + x.T @ x, right + x.T @ y
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solved: Tensor = torch.linalg.solve(gram, right)
    return solved


def rows_kept(keep: Tensor | None, prefix: int = 0) -> Tensor | None:
    """Rows ``[B|1, N, 1]`` after the prefix that a mask ``[B|1, 1, 1, T]`` keeps."""
    return None if keep is None else keep[:, 0, 0, prefix:, None]


def _kept(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows ``[n, D]`` of ``x [B, N, D]`` that are no padding."""
    return x.flatten(0, 1) if rows is None else x[rows[..., 0].expand(len(x), -1)]


def _standardise(layer: nn.Module, results: Sequence[Tensor]) -> None:
    """What a layer gives has deviation 1 per channel (as in LSUV, 1511.06422), mean LINEAR."""
    found = torch.cat([x.float() for x in results])
    deviation = found.std(0, correction=0)
    scale = 1.0 / deviation.clamp_min(max(1e-2 * float(deviation.max()), 1e-6))
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    weight.mul_(scale.view(-1, *(1,) * (weight.dim() - 1)))
    bias.sub_(found.mean(0)).mul_(scale).add_(LINEAR)


def _error(module: nn.Module, samples: Sequence[Sample | MapSample]) -> float:
    """Squared error over squared output, fully masked (NaN) rows left out."""
    left = right = 0.0
    for s in samples:
        y, out = s.run(module).double(), s.out.double().nan_to_num()
        if s.rows is not None:
            y, out = y * s.rows, out * s.rows
        left += float((y - out).nan_to_num().square().sum())
        right += float(out.square().sum())
    return left / max(right, 1e-30)
