"""Distillation: a converted model learns from the original one, on unlabelled batches.

The global stage compares the whole converted model with the original: outputs and hidden states.
The local stage, where it is asked for, comes first: every converted site learns for itself, all in
parallel, fed by the original model, from the block's output after its projection. Attention maps
are never compared. The plan learns, its forms' parameters and its deltas of the q, k, v and output
projections; the model is never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnpass.batch import Batch, call, check_batches
from attnpass.capture import Capture, buffers_kept
from attnpass.fingerprint import digest
from attnpass.plan import Delta, Plan
from attnpass.recover.checkpoint import Checkpoint
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.local_loss import LocalLoss
from attnpass.recover.objective import Objective
from attnpass.recover.options import DistilOptions
from attnpass.recover.stage import Progress, Stage
from attnpass.recover.trainer import Trainer
from attnpass.seeds import seeded


def distil(
    model: nn.Module,
    plan: Plan,
    inputs: Sequence[Batch],
    *,
    options: DistilOptions | None = None,
    selection: Sequence[Batch] = (),
    allow: Collection[str] = (),
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    **named_options: Any,
) -> list[Stage]:
    """Train ``plan`` in place until it does what ``model`` does; labels are not needed.

    Calibrate first (``attnpass.calibrate``): training starts from the plan's values.

    Args:
        model: the original, in the mode in which it will run. It is not changed.
        plan: of this model.
        inputs: a sequence of batches, each the positional arguments of a call (a tuple) or its
            named ones (a dict); they may be made anew (augmented) at every access.
        options: a ``DistilOptions``; or give its fields by name, e.g. ``budget=600, rank=16``.
        selection: batches that are not trained on: the values with the least loss on them are
            kept, and a stage that no longer improves on them ends. Without a selection the last
            values are kept.
        allow: what the caller accepts (``site.ALLOW``).
        checkpoint: a file that keeps the state while this runs. After an interruption the same
            call goes on from it, whatever values the plan holds then.
        progress: called after every step (``Progress``).

    Returns:
        The record of each stage, in order; of a stage without anything to learn there is none.

    Raises:
        OptionError: no inputs, no batches, an option out of range, or a checkpoint of something
            else.
        CaptureError: the model cannot be captured.
        PlanError: the plan does not fit the model.
        MeasureError: the loss is not finite, or no gradient reaches the plan.
    """
    chosen = DistilOptions.named(named_options) if options is None else options
    check_batches(inputs, "distil")
    check_batches(selection, "select", empty=True)
    with torch.inference_mode(False), torch.enable_grad(), buffers_kept(model):
        capture = call(Capture(model, allow=allow).trace, inputs[0])
        capture.use(plan, strict=True)
        capture.use(None)
        add_deltas(capture, plan, chosen)
        name = _checkpoint_name(model, plan, chosen, inputs, selection)
        saved = Checkpoint(checkpoint, name)
        for stage, share in _shares(chosen).items():
            if share == 0 or any(s.name == stage for s in saved.finished):
                continue
            objective: Objective
            if stage == "local":
                objective = LocalLoss(capture, {"": plan})
            else:
                objective = GlobalLoss(model, capture, plan, chosen.outputs, allow)
                objective.recomputed = chosen.recompute
            if any(unit.trained for unit in objective.units.values()):
                Trainer(objective, chosen, share, saved).run(inputs, selection, progress)
    saved.remove()
    if saved.finished:
        plan.measured = {}  # these numbers were measured with other values
        capture.bind_plan(plan)
    return saved.finished


def _shares(options: DistilOptions) -> dict[str, float]:
    """The share of the steps or the budget that each stage has, in the order of the stages."""
    local = options.local
    if options.steps is not None:
        local = round(options.steps * local) / options.steps  # whole steps
    return {"local": local, "global": 1 - local}


def _checkpoint_name(
    model: nn.Module,
    plan: Plan,
    options: DistilOptions,
    inputs: Sequence[Batch],
    selection: Sequence[Batch],
) -> str:
    """Digest of all that a run depends on but the plan's values, which a checkpoint holds.

    A checkpoint is refused under another name, so the text that is digested must not change.
    """
    with seeded(0):
        first = [batches[0] for batches in (inputs, selection) if len(batches)]
    tensors = [*model.parameters(), *model.buffers()]
    shapes = {k: tuple(v.shape) for k, v in plan.tensors().items()}
    forms = {n: (e.form, e.options) for n, e in plan.sites.items()}
    facts = [str(options), len(inputs), len(selection), repr(forms), repr(shapes)]
    return digest([facts, first, tensors])


def add_deltas(capture: Capture, plan: Plan, options: DistilOptions) -> None:
    """Give every projection of the converted sites that has no delta one of the options' rank.

    Sites whose values are all frozen get none. With ``options.softmax`` the sites that stay
    softmax are marked as learning and get deltas too.
    """
    if options.rank == 0:
        return
    legal = {s.name for s in capture.sites if s.legal.get("softmax") is None}
    for site, weights in capture.projections().items():
        entry = plan.sites.get(site)
        if options.softmax and entry and entry.form == "softmax" and weights and site in legal:
            entry.options = {"learns": True}
        if entry is None or entry.form == "skipat" or not entry.changes:
            continue
        values = plan.values.get(site, {}).values()
        if values and not any(p.requires_grad for p in values):
            continue  # frozen
        deltas = plan.deltas.setdefault(site, {})
        for i, (path, weight) in enumerate(weights.items()):
            if path not in deltas:
                seed = options.seed + i
                deltas[path] = Delta(weight.shape, options.rank, seed=seed, device=weight.device)
