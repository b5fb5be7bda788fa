"""The loss of the global stage as a module, for a training loop other than ``distil``'s own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from attnpass.batch import Batch, call
from attnpass.capture import Capture, buffers_kept
from attnpass.errors import OptionError
from attnpass.plan import Plan
from attnpass.recover.distillation import add_deltas
from attnpass.recover.global_loss import GlobalLoss
from attnpass.recover.options import DistilOptions


class DistillationLoss(nn.Module):
    """Distance of a converted model from the original, as ``distil`` minimises it.

    For loops that do what ``distil`` does not: several processes, gradient accumulation, mixing
    with a loss on labels. Call it with the arguments of the model; it returns the loss, a scalar.
    Its parameters are those of the plan that learn, and none of the model's, which is not changed.
    So an optimiser, ``DistributedDataParallel``, ``accelerate`` and the Trainer of transformers
    take it as the model to train. Save the plan, not the module.

    Args:
        model: the original, on its device and in the mode in which it will run.
        plan: of this model, calibrated; it gets the deltas that ``rank`` and ``softmax`` say.
        example: the arguments of a call, positional (a tuple) or named (a dict).
        rank, softmax, outputs, seed, recompute: as in ``DistilOptions``.
        allow: what the caller accepts (``site.ALLOW``).

    Attributes:
        plan: the plan, which learns in place.

    Raises:
        OptionError: an option out of range, or nothing in the plan can learn.
        CaptureError: the model cannot be captured.
        PlanError: the plan does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        example: Batch,
        *,
        allow: Collection[str] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        chosen = DistilOptions.named(
            options, of=("rank", "softmax", "outputs", "seed", "recompute")
        )
        with torch.inference_mode(False), buffers_kept(model):
            teacher = call(Capture(model, allow=allow).trace, example)
            teacher.use(plan, strict=True)
            teacher.use(None)
            add_deltas(teacher, plan, chosen)
            teacher.bind_plan(plan)
            self._loss = GlobalLoss(model, teacher, plan, chosen.outputs, allow)
            self._loss.recomputed = chosen.recompute
        plan.measured = {}  # these numbers were measured with other values
        self.plan = plan
        if not self._loss.unit.trained:
            raise OptionError("expected a plan in which something can learn, got none")
        self.learning = nn.ParameterList(self._loss.unit.parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on one batch, a scalar: given are the arguments of a call of the model.

        Raises:
            OptionError: some arguments are positional and some are named, the model returns no
                floating tensor, or the parameters were exchanged, e.g. for shards.
        """
        if args and kwargs:
            raise OptionError("expected arguments that are all positional or all named, got both")
        own = self._loss.unit.parameters
        if any(p is not mine for p, mine in zip(self.learning, own, strict=True)):
            raise OptionError(
                "expected the plan's own parameters, got others in their place (shards of"
                " fully_shard?); the plan is small, use DistributedDataParallel"
            )
        with buffers_kept(self._loss.student.model):
            ((_, loss),) = self._loss.losses(args or kwargs)
        return loss

    def groups(self, rate: float = 0.05) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, each with a learning rate of its own.

        It is relative to the size of what it changes, as in ``distil`` (``DistilOptions.rate``),
        which also multiplies it by the initial loss, clamped to [0.01, 2], and by a schedule.
        """
        scale = rate * self._loss.share
        return [{"params": [t.parameter], "lr": scale * t.size} for t in self._loss.unit.trained]
