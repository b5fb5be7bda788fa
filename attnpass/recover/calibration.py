"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

Seconds, a few unlabelled batches, no gradients. Every site is fitted to the original model's own
activations, so a fit does not depend on which other sites are converted.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from attnpass import forms
from attnpass.batch import Batch, call, check_batches
from attnpass.capture import Capture, buffers_kept
from attnpass.forms import Hydra, Pointwise, SkipAt
from attnpass.plan import Plan
from attnpass.recover.fit_gain import _error, _fit_gain, _moments
from attnpass.recover.fit_pointwise import _fit_pointwise
from attnpass.recover.fit_skipat import _fit_skipat
from attnpass.recover.observation import observe
from attnpass.recover.samples import Block, MapSample, Observed, Sample


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
