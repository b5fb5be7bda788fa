"""The loss of the global stage: the converted model's outputs and hidden states."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from attnpass.batch import Batch
from attnpass.capture import Capture, frozen_parameters
from attnpass.errors import OptionError
from attnpass.plan import Plan
from attnpass.recover.answers import Answer, answer
from attnpass.recover.distances import divergence, relative_error
from attnpass.recover.objective import floating_dtypes
from attnpass.recover.padding import token_rows
from attnpass.recover.units import Unit, UnitKey, trained_unit

HIDDEN_WEIGHT = 1.0
"""Weight of the hidden states, all together, beside the outputs."""


class GlobalLoss:
    """Distance of a converted model's outputs and hidden states from those of the original.

    Args:
        model: the original.
        teacher: its capture, under no plan.
        plan: of the converted model, its deltas in place.
        outputs: what the model returns, ``logits`` or ``features`` (``DistilOptions.outputs``).
        allow: what the caller accepts (``site.ALLOW``).
        student: a capture of the model to use again, by default a new one.

    Attributes:
        name, share, units, dtypes: see ``Objective``.
        recomputed: whether the student's activations are computed a second time for gradients.
        unit: the only one, all sites that the plan changes.
        student: a capture of the model under the plan.
    """

    name, share = "global", 0.5

    def __init__(
        self,
        model: nn.Module,
        teacher: Capture,
        plan: Plan,
        outputs: str,
        allow: Collection[str],
        student: Capture | None = None,
    ) -> None:
        self.teacher, self.outputs = teacher, outputs
        self.dtypes = floating_dtypes(model)
        self.student = student or Capture(model, allow=allow)
        self.student.use(plan)
        weights = {p: w for own in teacher.projections().values() for p, w in own.items()}
        converted = [n for n, e in plan.sites.items() if e.changes]
        self.unit = trained_unit(plan, converted, weights)
        self.units: dict[UnitKey, Unit] = {("", ""): self.unit}
        self.recomputed = False

    def recompute(self) -> None:
        """Keep no activations inside the student's blocks; compute them twice instead."""
        self.recomputed = True

    def losses(self, batch: Batch) -> Iterator[tuple[UnitKey, Tensor]]:
        """The only unit with its loss.

        Raises:
            OptionError: the model returns no floating tensor.
        """
        with torch.no_grad():
            want = answer(self.teacher, batch)
        with frozen_parameters(self.student.model):
            got = answer(self.student, batch, recomputed=self.recomputed)
        loss = self._output_loss(got, want)
        # a router may send other tokens to a part of the converted model: no pair to compare
        paired = [
            name
            for name, x in want.hidden.items()
            if name in got.hidden and got.hidden[name].shape == x.shape
        ]
        for name in paired:
            rows = token_rows(got.masks, got.hidden[name])
            error = relative_error(got.hidden[name], want.hidden[name], rows)
            loss = loss + HIDDEN_WEIGHT / len(paired) * error
        yield ("", ""), loss

    def _output_loss(self, got: Answer, want: Answer) -> Tensor:
        """Divergence of the logits, and the mean relative error of all other outputs.

        The first output that can be logits is; what a model returns beside them (states of an
        encoder, boxes) has no classes.
        """
        if not want.outputs:
            raise OptionError("expected a model that returns a floating tensor, got none")
        able = [i for i, x in enumerate(want.outputs) if x.dim() > 1 and x.shape[-1] > 1]
        logits = able[0] if self.outputs == "logits" and able else None
        total, errors = got.outputs[0].new_zeros((), dtype=torch.float32), []
        for i, (a, b) in enumerate(zip(got.outputs, want.outputs, strict=True)):
            rows = token_rows(got.masks, a)
            if i == logits:
                total = divergence(a, b, rows)
            else:
                errors.append(relative_error(a, b, rows))
        return total + torch.stack(errors).mean() if errors else total
