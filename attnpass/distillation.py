"""Distillation: a converted model learns from the original one, on unlabelled batches.

First locally: every converted site for itself, all in parallel, fed by the original model, on the
block's output after its projection (attention maps are never compared). Then globally: the whole
converted model on the original's output and its last features. What learns is the plan: the
forms' parameters and deltas of the q, k, v and output projections; the model is never changed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from attnpass.capture import Capture, buffers_kept
from attnpass.delta import Delta
from attnpass.errors import OptionError
from attnpass.objectives import Global, Local
from attnpass.plan import Plan
from attnpass.trainer import Batches, Checkpoint, DistilOptions, Progress, Stage, Trainer


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
        plan: of this model. inputs: batches, each the positional arguments of a call; they may be
            made anew (augmented) at every access.
        options: how; or give its fields by name, e.g. ``budget=600, rank=16``.
        selection: batches that are not trained on: the values with the least loss on them are
            kept, and a stage that no longer improves there ends. Without, the last values are.
        allow: what the caller accepts (``site.ALLOW``).
        checkpoint: a file that keeps the state while this runs; an interrupted call goes on.
        progress: told after every step.

    Returns:
        What each stage did.

    Raises:
        OptionError: no inputs, an option out of range, or a checkpoint of something else.
        CaptureError: the model cannot be captured. PlanError: the plan does not fit it.
        MeasureError: the loss is not finite.
    """
    try:
        chosen = DistilOptions(**given) if options is None else options
    except TypeError as error:
        fields = ", ".join(DistilOptions.__dataclass_fields__)
        raise OptionError(f"expected options of {fields}; {error}") from error
    if not len(inputs):
        raise OptionError("expected at least one batch of inputs to distil on, got none")
    with buffers_kept(model):
        capture = Capture(model, allow=allow).trace(*inputs[0])
        capture.use(plan, strict=True)
        capture.use(None)
        add_deltas(capture, plan, chosen)
        saved = Checkpoint(checkpoint, f"{plan.hash} {chosen} {len(inputs)} {len(selection)}")
        for share, name in ((chosen.local, "local"), (1 - chosen.local, "global")):
            if share == 0 or any(s.name == name for s in saved.finished):
                continue
            objective: Local | Global
            if name == "local":
                objective = Local(capture, {"": plan})
            else:
                objective = Global(model, capture, plan, chosen.outputs, allow)
            if any(unit.values for unit in objective.units.values()):
                Trainer(objective, chosen, share, saved).run(inputs, selection, progress)
    saved.remove()
    return saved.finished


def add_deltas(capture: Capture, plan: Plan, options: DistilOptions) -> None:
    """Deltas for every projection of the converted sites that has none yet."""
    if options.rank == 0:
        return
    for site, weights in capture.projections().items():
        entry = plan.sites.get(site)
        if entry is None or entry.form in ("softmax", "skipat"):
            continue
        own = plan.deltas.setdefault(site, {})
        for i, (path, weight) in enumerate(weights.items()):
            if path not in own:
                seed = options.seed + i
                own[path] = Delta(weight.shape, options.rank, seed=seed, device=weight.device)
