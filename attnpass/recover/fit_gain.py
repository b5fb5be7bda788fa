"""The gain of a form, by least squares, and the error that a fitted form leaves.

The same for pointwise forms (a gain per head) and Hydra (one per feature).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnpass.forms import Hydra, Pointwise
from attnpass.recover.samples import MapSample, Sample


def moments(
    form: Pointwise | Hydra, samples: Sequence[Sample | MapSample], dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """``sum target * form`` and ``sum form^2`` over ``dims`` of all samples, in float64."""
    dot = power = samples[0].out.new_zeros((), dtype=torch.float64)
    for sample in samples:
        y = sample.run(form).double()
        if sample.rows is not None:
            y = y * sample.rows
        dot = dot + (sample.out.double() * y).nan_to_num().sum(dims)
        power = power + y.square().sum(dims)
    return dot, power


def update_gain(gain: Tensor, dot: Tensor, power: Tensor) -> None:
    """Multiply a gain by the factor that brings the form nearest to the target."""
    factor = torch.where(power > 0, dot / power.clamp_min(1e-30), torch.ones_like(dot))
    gain.copy_((gain.double() * factor.reshape(gain.shape)).to(gain.dtype))


def error_left(form: Pointwise | Hydra, samples: Sequence[Sample | MapSample]) -> float:
    """Squared error over squared target; rows without any key (NaN) and of padding left out."""
    error = total = 0.0
    for sample in samples:
        y, target = sample.run(form).double(), sample.out.double().nan_to_num()
        if sample.rows is not None:
            y, target = y * sample.rows, target * sample.rows
        error += float((y - target).nan_to_num().square().sum())
        total += float(target.square().sum())
    return error / max(total, 1e-30)
