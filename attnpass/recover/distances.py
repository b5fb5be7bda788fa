"""Distances between tensors of the converted and of the original model, as float32 scalars.

Shapes: B batch, T tokens, D width; rows are those of ``padding.token_rows``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TEMPERATURE = 2.0
"""Temperature that softens both distributions before they are compared (1503.02531)."""

LOGIT_FLOOR = -1e4
"""Least logit, or logarithm of a probability, that is compared. It stands for -inf, of which two
would differ by NaN."""


def relative_error(got: Tensor, want: Tensor, rows: Tensor | None = None) -> Tensor:
    """``|got - want|^2 / |want|^2`` in float32, over ``rows`` and where ``want`` is finite."""
    got, want = got.float(), want.float()
    counted = torch.isfinite(want) if rows is None else torch.isfinite(want) & rows
    error = torch.where(counted, got - want, 0.0).square().sum()
    return error / torch.where(counted, want, 0.0).square().sum().clamp_min(1e-12)


def divergence(got: Tensor, want: Tensor, rows: Tensor | None) -> Tensor:
    """Kullback-Leibler divergence of logits ``[..., classes]``, mean over ``rows``.

    Multiplied by the temperature's square, so that gradients do not depend on it (1503.02531).
    """
    if rows is not None:
        got, want = (x[rows[..., 0]] for x in (got, want))
    t = TEMPERATURE
    # classes that are ruled out by -inf have no divergence, not NaN
    student, teacher = (
        (x.float() / t).clamp_min(LOGIT_FLOOR).log_softmax(-1).flatten(0, -2) for x in (got, want)
    )
    total = nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return t * t * total / max(len(student), 1)
