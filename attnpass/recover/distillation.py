"""Distillation: a converted model learns from the original one, on unlabelled batches.

Globally: the whole converted model on the original's output and its hidden states. Before that,
where asked for, locally: every converted site for itself, all in parallel, fed by the original
model, on the block's output after its projection (attention maps are never compared). What learns
is the plan: the forms' parameters and deltas of the q, k, v and output projections; the model is
never changed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnpass.batch import call, check_batches
from attnpass.capture import Capture, buffers_kept
from attnpass.errors import OptionError
from attnpass.fingerprint import digest
from attnpass.plan import Delta, Plan
from attnpass.recover.checkpoint import Checkpoint, Stage
from attnpass.recover.losses import Global, Local
from attnpass.recover.options import DistilOptions
from attnpass.recover.trainer import Batches, Progress, Trainer
from attnpass.seeds import seeded


def distil(
    model: nn.Module,
    plan: Plan,
    inputs: Batches,
    *,
    options: DistilOptions | None = None,
    selection: Batches = (),
    allow: Collection[str] = (),
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    **given: Any,
) -> list[Stage]:
    """Train ``plan`` in place until it does what ``model`` does; labels are not needed.

    Calibrate first (``attnpass.calibrate``): training starts from what the plan holds.

    Args:
        model: the original, in the mode in which it will run. It is not changed.
        plan: of this model. inputs: a sequence of batches, each the positional arguments of a call
            (a tuple) or its named ones (a dict); they may be made anew (augmented) at every
            access.
        options: how; or give its fields by name, e.g. ``budget=600, rank=16``.
        selection: batches that are not trained on: the values with the least loss on them are
            kept, and a stage that no longer improves there ends. Without, the last values are.
        allow: what the caller accepts (``site.ALLOW``).
        checkpoint: a file that keeps the state while this runs; after an interruption the same
            call goes on from it, whatever values the plan holds then.
        progress: told after every step.

    Returns:
        What each stage did.

    Raises:
        OptionError: no inputs, no batches, an option out of range, or a checkpoint of something
            else.
        CaptureError: the model cannot be captured. PlanError: the plan does not fit it.
        MeasureError: the loss is not finite, or no gradient reaches the plan.
    """
    try:
        chosen = DistilOptions(**given) if options is None else options
    except TypeError as error:
        fields = ", ".join(DistilOptions.__dataclass_fields__)
        raise OptionError(f"expected options of {fields}; {error}") from error
    check_batches(inputs, "distil")
    check_batches(selection, "select", empty=True)
    with torch.inference_mode(False), torch.enable_grad(), buffers_kept(model):
        capture = call(Capture(model, allow=allow).trace, inputs[0])
        capture.use(plan, strict=True)
        capture.use(None)
        add_deltas(capture, plan, chosen)
        saved = Checkpoint(checkpoint, _name(model, plan, chosen, inputs, selection))
        local = chosen.local
        if chosen.steps is not None:
            local = round(chosen.steps * local) / chosen.steps  # whole steps
        for share, name in ((local, "local"), (1 - local, "global")):
            if share == 0 or any(s.name == name for s in saved.finished):
                continue
            objective: Local | Global
            if name == "local":
                objective = Local(capture, {"": plan})
            else:
                objective = Global(model, capture, plan, chosen.outputs, allow)
            if any(unit.values for unit in objective.units.values()):
                trainer = Trainer(objective, chosen, share, saved)
                trainer.run(inputs, selection, progress)
    saved.remove()
    if saved.finished:
        # what was measured was measured with other values
        plan.measured = {}
        capture.own(plan)
    return saved.finished


def _name(
    model: nn.Module, plan: Plan, options: DistilOptions, inputs: Batches, selection: Batches
) -> str:
    """What a checkpoint belongs to: all but the values it starts from, which it holds itself."""
    with seeded(0):
        first = [batches[0] for batches in (inputs, selection) if len(batches)]
    tensors = [*model.parameters(), *model.buffers()]
    shapes = {k: tuple(v.shape) for k, v in plan.tensors().items()}
    forms = {n: (e.form, e.options) for n, e in plan.sites.items()}
    what = [str(options), len(inputs), len(selection), repr(forms), repr(shapes)]
    return digest([what, first, tensors])


def add_deltas(capture: Capture, plan: Plan, options: DistilOptions) -> None:
    """Deltas for every projection of the converted sites that has none; frozen sites stay so."""
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
        own = plan.deltas.setdefault(site, {})
        for i, (path, weight) in enumerate(weights.items()):
            if path not in own:
                seed = options.seed + i
                own[path] = Delta(weight.shape, options.rank, seed=seed, device=weight.device)
