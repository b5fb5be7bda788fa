"""The correctness gate: a compiled plan has to give what the captured model gives under it.

In bfloat16 and float16 two right implementations differ by more than ``GATE`` of rounding alone.
There both are compared with the same plan on a copy of the model in float32: the compiled one may
be off by twice as much as the captured one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from attnpass.batch import Batch, call
from attnpass.capture import Capture
from attnpass.errors import MeasureError
from attnpass.plan import Plan
from attnpass.task import Task
from attnpass.torch_internals import pytree
from attnpass.tuner.measure.accuracy import first_tensor

GATE = 2e-3
"""Largest relative difference (float32, norm over norm) that compiled and captured may have."""

NARROW, TWICE = (torch.bfloat16, torch.float16), 2.0

HOPELESS = 0.2
"""Relative error of a narrow model from which its float32 copy is no reference: the model decides
otherwise there, and rounding hides everything."""


class Gate:
    """Checks compiled outputs of one task's model."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._copy: Capture | None = None

    def check(self, plan: Plan | None, batch: Batch, expected: Tensor, got: Tensor) -> None:
        """Compare a compiled output with the captured one, ``expected``.

        Raises:
            MeasureError: they differ by more than rounding.
        """
        off, allowed, of = relative(got, expected), GATE, "the captured one"
        if not off <= allowed and expected.dtype in NARROW:
            exact = self._exact(plan, batch)
            own = relative(expected, exact)
            if own < HOPELESS:
                off, of = relative(got, exact), "the same plan in float32"
                allowed = GATE + TWICE * own
        if not off <= allowed:
            raise MeasureError(
                f"expected the compiled plan within {allowed:.2g} of {of}, got a relative"
                f" difference of {off:.2g}"
            )

    def _exact(self, plan: Plan | None, batch: Batch) -> Tensor:
        """The output of a copy of the model in float32 under the plan.

        Raises:
            MeasureError: there is no such copy.
        """
        wide = pytree.tree_map(_widened, batch)
        try:
            if self._copy is None:
                self._copy = Capture(copy.deepcopy(self.task.model).float())
            capture = self._copy
            with torch.no_grad():
                call(capture, wide)
                capture.use(plan if plan is None or not plan.deltas else _unbound(plan))
                found = first_tensor(call(capture, wide))
                capture.use(None)
        except MeasureError:
            raise
        except Exception as error:
            raise MeasureError(
                f"expected a model of which a float32 copy runs, to check {self.task.name} by, got"
                f" {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        return found


def _unbound(plan: Plan) -> Plan:
    """A copy that does not say which weights its deltas belong to: they were narrow ones."""
    own = plan.copy()
    for entry in own.sites.values():
        entry.weights = ""
    return own


def relative(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``, in float64."""
    expected = expected.detach().double()
    return float((got.detach().double() - expected).norm() / expected.norm().clamp_min(1e-30))


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in NARROW else x
