"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

Seconds, a few unlabelled batches, no gradients. Every site is fitted to the original model's own
activations, so a fit does not depend on which other sites are converted.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass import forms
from attnpass.capture import Capture, Graph, Layer, buffers_kept
from attnpass.errors import OptionError
from attnpass.forms import Hydra, Pointwise, SkipAt
from attnpass.plan import Plan
from attnpass.region import Region
from attnpass.watch import Seen, watched

ITEMS = 32
"""Items per site that are kept for fitting."""

ROOM = 8
"""Items of a sample whose logits are looked at."""

ROWS = 256
"""Query rows whose logits are held at a time."""

LOGITS = 200_000
"""Logits of a head that its quantiles are taken of."""

TEMPERATURES = (0.0, 0.25, 0.5)
SHIFTS = (-0.5, 0.0, 0.5)
QUANTILES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
RIDGE = 1e-3


@dataclass
class Sample:
    """What one attention saw, and its output ``[B, H, T, dv]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    keep: Tensor | None
    out: Tensor


@dataclass
class Observed:
    """Activations of the original model, per site."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    blocks: dict[str, list[tuple[Tensor, Tensor, Tensor | None]]] = field(default_factory=dict)
    """Per site (previous block output, own block output ``[B, T, D]``, keep) for skipat."""


class _Recorder(nn.Module):
    """Softmax that keeps what passes."""

    def __init__(self, softmax: nn.Module, into: list[Sample]) -> None:
        super().__init__()
        self.softmax, self.into = softmax, into

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = self.softmax(q, k, v, bias, keep)
        room = ITEMS - sum(s.q.shape[0] for s in self.into)
        if room > 0:
            b = q.shape[0]
            parts = (
                x if x is None or x.shape[0] != b else x[:room] for x in (q, k, v, bias, keep, out)
            )
            self.into.append(Sample(*(x if x is None else x.detach().clone() for x in parts)))  # type: ignore[arg-type]
        return out


def observe(capture: Capture, batches: Sequence[tuple[Any, ...]]) -> Observed:
    """Run the original model on ``batches`` and keep up to ``ITEMS`` items per site."""
    out = Observed()
    recorders: dict[str, nn.Module] = {
        s.name: _Recorder(forms.build("softmax", s), out.samples.setdefault(s.name, []))
        for s in capture.sites
        if s.legal.get("softmax") is None and not (s.swapped or s.sink)
    }
    taken = 0
    with torch.no_grad():
        for batch in batches:
            if taken >= ITEMS:
                break
            capture.use_modules(recorders)
            capture(*batch)
            capture.use_modules({})
            _, ran = watched(capture, batch, _blocks)
            for _, layer, seen in ran:
                _keep_blocks(out, layer, seen)
            taken = max(
                (sum(x.q.shape[0] for x in s) for s in out.samples.values()), default=ITEMS
            )
    capture.use_modules({})
    return out


def _pairs(layer: Layer) -> list[tuple[Region, fx.Node, fx.Node]]:
    """Regions with the previous block output and their own."""
    return [
        (r, r.previous.block_out, r.block_out)
        for r in layer.regions
        if r.previous is not None and r.previous.block_out is not None and r.block_out is not None
    ]


def _blocks(graph: Graph, layer: Layer) -> set[str]:
    return {node.name for _, *pair in _pairs(layer) for node in pair}


def _keep_blocks(out: Observed, layer: Layer, seen: Seen) -> None:
    for region, z, y in _pairs(layer):
        found = out.blocks.setdefault(region.site.name, [])
        samples = out.samples.get(region.site.name, [])
        keep = samples[len(found)].keep if len(found) < len(samples) else None
        if sum(x.shape[0] for x, _, _ in found) < ITEMS:
            found.append((seen[z.name].detach().clone(), seen[y.name].detach().clone(), keep))


def calibrate(
    model: nn.Module,
    plan: Plan,
    inputs: Sequence[tuple[Any, ...]],
    *,
    allow: Collection[str] = (),
) -> dict[str, float]:
    """Fit every converted site of ``plan`` in place, from unlabelled batches; no training.

    Args:
        model: the original model, in the mode in which it will run. It is not changed.
        plan: of this model. inputs: batches, each the positional arguments of a call; up to
            ``ITEMS`` items are used. allow: what the caller accepts (``site.ALLOW``).

    Returns:
        Per converted site ``|form - softmax|^2 / |softmax|^2`` over the attention's output.

    Raises:
        OptionError: no inputs. CaptureError: the model cannot be captured.
        PlanError: an entry of the plan does not fit the model.
    """
    batches = list(inputs)
    if not batches:
        raise OptionError("expected at least one batch of inputs to calibrate on, got none")
    with buffers_kept(model):
        capture = Capture(model, allow=allow).trace(*batches[0])
        capture.use(plan, strict=True)
        return fit_sites(capture, plan, observe(capture, batches))


def fit_sites(capture: Capture, plan: Plan, observed: Observed) -> dict[str, float]:
    """Fit every converted site of ``plan`` in place; returns the relative error left per site.

    The error is ``|form - softmax|^2 / |softmax|^2`` over the observed outputs.
    """
    errors = {}
    with torch.no_grad():
        for site in capture.sites:
            samples = observed.samples.get(site.name, [])
            blocks = observed.blocks.get(site.name, [])
            seen = [s.q.device for s in samples] + [z.device for z, _, _ in blocks]
            module = plan.module(site, device=seen[0] if seen else None)
            if module is not None:
                errors[site.name] = fit(module, samples, blocks)
    return errors


def fit(
    module: nn.Module,
    samples: Sequence[Sample],
    blocks: Sequence[tuple[Tensor, Tensor, Tensor | None]] = (),
) -> float:
    """Fit one form's parameters to what softmax gave; returns the relative error left."""
    if isinstance(module, SkipAt):
        return _fit_skipat(module, blocks)
    if not samples:
        return math.nan
    if isinstance(module, Pointwise) and module.b is not None:
        _fit_pointwise(module, samples)
    elif isinstance(module, Hydra) and module.gain is not None:
        _fit_gain(module.gain, *_moments(module, samples, (0, 2)))
    return _error(module, samples)


def _moments(
    module: nn.Module, samples: Sequence[Sample], dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """``sum out * form`` and ``sum form^2`` over ``dims`` of all samples, in float64."""
    dot = power = samples[0].q.new_zeros((), dtype=torch.float64)
    for s in samples:
        y = module(s.q, s.k, s.v, s.bias, s.keep).double()
        dot = dot + (s.out.double() * y).nan_to_num().sum(dims)
        power = power + y.square().sum(dims)
    return dot, power


def _fit_gain(gain: Tensor, dot: Tensor, power: Tensor) -> None:
    """Least squares: the gain that brings the form nearest to the target."""
    value = torch.where(power > 0, dot / power.clamp_min(1e-30), torch.ones_like(dot))
    gain.copy_((gain.double() * value.reshape(gain.shape)).to(gain.dtype))


def _fit_pointwise(module: Pointwise, samples: Sequence[Sample]) -> None:
    """Per head: k0 the mean key, then (tau, b) of a small grid with the least error, then g."""
    assert module.b is not None and module.gain is not None and module.k0 is not None
    total = torch.stack([_key_sums(s)[0] for s in samples]).sum(0)
    count = torch.stack([_key_sums(s)[1] for s in samples]).sum()
    module.k0.copy_((total / count.clamp_min(1)).to(module.k0.dtype))
    best = torch.full_like(module.b, math.inf, dtype=torch.float64)
    kept_tau, kept_b, kept_gain = torch.zeros_like(module.b), module.b.clone(), module.gain.clone()
    for log_tau, b in _candidates(module, samples):
        module.gain.fill_(1.0)
        module.b.copy_(b)
        if module.log_tau is not None:
            module.log_tau.fill_(log_tau)
        dot, power = _moments(module, samples, (0, 2, 3))
        # |y - g f|^2 at the best g is |y|^2 - dot^2 / power
        error = torch.where(power > 0, -dot * dot / power.clamp_min(1e-30), torch.zeros_like(dot))
        better = (error < best) & torch.isfinite(error)
        best = torch.where(better, error, best)
        gain = (dot / power.clamp_min(1e-30)).to(module.gain.dtype)
        kept_gain = torch.where(better, gain, kept_gain)
        kept_b = torch.where(better, module.b, kept_b)
        kept_tau = torch.where(better, torch.full_like(kept_tau, log_tau), kept_tau)
    module.b.copy_(kept_b)
    module.gain.copy_(kept_gain)
    if module.log_tau is not None:
        module.log_tau.copy_(kept_tau)


def _key_sums(s: Sample) -> tuple[Tensor, Tensor]:
    """Sum of keys ``[G, d]`` and their number, over kept positions where the mask is padding."""
    k = s.k.double()
    if s.keep is not None and s.keep.dim() == 4 and s.keep.shape[1:3] == (1, 1):
        weight = s.keep.expand(k.shape[0], -1, -1, -1).transpose(-1, -2).double()  # [B, 1, S, 1]
        return (k * weight).sum((0, 2)), weight.sum()
    return k.sum((0, 2)), k.new_tensor(k.shape[0] * k.shape[2])


def _candidates(module: Pointwise, samples: Sequence[Sample]) -> Iterator[tuple[float, Tensor]]:
    """Pairs of log tau and ``b [H]``; the first is the closed form of the paper's identity."""
    assert module.b is not None
    if module.h == "sigmoid":
        for log_tau, start in zip(TEMPERATURES, _starts(module, samples), strict=True):
            for shift in SHIFTS:
                yield log_tau, (start + shift).to(torch.float32)
        return
    for quantile in QUANTILES:
        values = [torch.quantile(x, quantile) for x in _some_logits(module, samples)]
        yield 0.0, -torch.stack(values)
    yield 0.0, torch.zeros_like(module.b)


def _starts(module: Pointwise, samples: Sequence[Sample]) -> list[Tensor]:
    """Per temperature ``b [H]``, the mean of log L - LSE over non-empty rows.

    sigma(s - LSE) = p / (1 + p) is the softmax weight p where that is small.
    """
    total = [torch.zeros((), dtype=torch.float64) for _ in TEMPERATURES]
    count = torch.zeros(())
    for s in samples:
        for x, length in _logits(module, s):
            full = torch.isfinite(x).any(-1)  # [b, H, m]
            count = count.to(x.device) + full.sum((0, 2))
            for i, log_tau in enumerate(TEMPERATURES):
                row = length.log() - torch.logsumexp(x * math.exp(log_tau), -1)
                total[i] = total[i].to(x.device) + row.masked_fill(~full, 0.0).double().sum((0, 2))
    return [t / count.clamp_min(1) for t in total]


def _some_logits(module: Pointwise, samples: Sequence[Sample]) -> list[Tensor]:
    """Up to ``LOGITS`` finite logits of every head."""
    found: list[list[Tensor]] = []
    shapes = [(min(s.q.shape[0], ROOM), s.q.shape[1], s.q.shape[2], s.k.shape[2]) for s in samples]
    step = sum(b * t * n for b, _, t, n in shapes) // LOGITS + 1
    for s in samples:
        for x, _ in _logits(module, s):
            # an odd step does not meet the same few keys again and again
            found.append([y[y > -math.inf] for y in x.transpose(0, 1).flatten(1)[:, :: step | 1]])
    heads = [torch.cat(x) for x in zip(*found, strict=True)]
    return [x if x.numel() else x.new_zeros(1) for x in heads]


def _logits(module: Pointwise, s: Sample) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``[b, H, m, S]`` of a few items, -inf where masked, and L broadcast to rows.

    In blocks of m rows, so that never more than some ``ROWS * S`` are held.
    """
    q, k = s.q[:ROOM].float(), s.k[:ROOM].float()
    if module.k0 is not None:
        k = k - module.k0.unsqueeze(1)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    bias, keep = (_four(x) for x in (s.bias, s.keep))
    length = module._length(q, k, keep).squeeze(-1)
    for i in range(0, q.shape[2], ROWS):
        rows = slice(i, i + ROWS)
        x = q[:, :, rows] @ k.transpose(-1, -2) * module.scale
        if bias is not None:
            x = x + (bias if bias.shape[2] == 1 else bias[:, :, rows]).float()
        if keep is not None:
            x = x.masked_fill(~(keep if keep.shape[2] == 1 else keep[:, :, rows]), -math.inf)
        if module.causal:
            t = torch.arange(i, i + x.shape[2], device=x.device).unsqueeze(1)
            x = x.masked_fill(torch.arange(x.shape[3], device=x.device) > t, -math.inf)
        yield x, length if length.shape[2] == 1 else length[:, :, rows]


def _four(x: Tensor | None) -> Tensor | None:
    """A bias or mask with all four axes, of the first few items."""
    if x is None:
        return None
    return x.view((1,) * (4 - x.dim()) + x.shape)[:ROOM]


def _fit_skipat(module: SkipAt, blocks: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> float:
    """Ridge regression of the last linear on random features; the channel gate starts at 1/2."""
    if not blocks:
        return math.nan
    if module.hidden:
        module.eca.weight.zero_()
        gram = right = blocks[0][0].new_zeros((), dtype=torch.float64)
        for z, y, keep in blocks:
            mask = None if keep is None else keep[:, 0, 0, :, None]
            p = module.prefix
            mask = mask[:, p:] if mask is not None and p else mask
            x = module._features(z[:, p:], mask)
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1).flatten(0, 1).double()
            gram = gram + x.T @ x
            right = right + x.T @ (2 * y[:, p:].flatten(0, 1).double())
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        solved = torch.linalg.solve(gram, right)  # [rD + 1, D]
        module.down.weight.copy_(solved[:-1].T)
        module.down.bias.copy_(solved[-1])
    left = sum(
        float((module(z, keep).double() - y.double()).square().sum()) for z, y, keep in blocks
    )
    return left / max(sum(float(y.double().square().sum()) for _, y, _ in blocks), 1e-30)


def _error(module: nn.Module, samples: Sequence[Sample]) -> float:
    """Squared error over squared output, fully masked (NaN) rows left out."""
    left = right = 0.0
    for s in samples:
        y = module(s.q, s.k, s.v, s.bias, s.keep).double()
        left += float((y - s.out.double()).nan_to_num().square().sum())
        right += float(s.out.double().nan_to_num().square().sum())
    return left / max(right, 1e-30)
