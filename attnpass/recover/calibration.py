"""Closed-form calibration: the parameters with which a form comes nearest to softmax.

It takes seconds, a few unlabelled batches and no gradients. Every site is fitted to the original
model's own activations, so a fit does not depend on which other sites are converted. The closed
forms are in ``fit_gain``, ``fit_pointwise`` and ``fit_skipat``.
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
from attnpass.recover.fit_gain import error_left, moments, update_gain
from attnpass.recover.fit_pointwise import fit_pointwise
from attnpass.recover.fit_skipat import fit_skipat
from attnpass.recover.observation import Observed, observe
from attnpass.recover.samples import BlockSample, MapSample, Sample


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
        plan: of this model. Its frozen parameters stay as they are.
        inputs: batches, each the positional arguments of a call (a tuple) or its named ones (a
            dict); up to 32 items are used, 128 for skipat (``ITEMS`` and ``BLOCK_ITEMS`` of
            ``attnpass.recover.observation``).
        allow: what the caller accepts (``site.ALLOW``).

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
        plan.measured = {}  # these numbers were measured with other values
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
            devices = [s.out.device for s in samples] + [x.device for x, _, _ in blocks]
            form = plan.module(site, device=devices[0] if devices else None)
            if form is not None:
                errors[site.name] = fit(form, samples, blocks)
    return errors


def fit(
    form: nn.Module,
    samples: Sequence[Sample | MapSample],
    blocks: Sequence[BlockSample] = (),
) -> float:
    """Fit one form's parameters to the outputs of softmax; returns the relative error left.

    Frozen parameters stay as they are. NaN without samples (of blocks, for skipat).
    """
    if isinstance(form, (forms.Softmax, forms.SoftmaxWeights)):
        return 0.0
    learns = any(p.requires_grad for p in form.parameters())
    if isinstance(form, SkipAt):
        return fit_skipat(form, blocks, learns) if blocks else math.nan
    assert isinstance(form, (Pointwise, Hydra))
    # in another graph more, or less, of the same attention may be exchanged
    maps = isinstance(form, forms.Weights)
    samples = [s for s in samples if isinstance(s, MapSample) == maps]
    if not samples:
        return math.nan
    if learns and isinstance(form, Pointwise) and form.b is not None:
        fit_pointwise(form, samples)
    elif learns and isinstance(form, Hydra) and form.gain is not None:
        update_gain(form.gain, *moments(form, samples, (0, 2)))
    return error_left(form, samples)
