"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

Seconds, a few unlabelled batches, no gradients. Every site is fitted to the original model's own
activations, so a fit does not depend on which other sites are converted.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attnpass.recover.samples import MapSample, Sample


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
