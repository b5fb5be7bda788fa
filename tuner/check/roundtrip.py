"""Every site rewritten to softmax from the extracted q, k, v, mask and scale, against eager.

An equal result proves that scale, bias, mask, layout, grouping and dtype were read correctly.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.task import Task
from attnpass.torch_internals import pytree
from attnpass.tuner.measure import first_tensor, relative

FLOAT32 = 1e-5
"""Largest relative difference (norm over norm) in float32 and wider."""


@dataclass(frozen=True)
class Roundtrip:
    """Relative differences (norm over norm) of the rewritten model to eager.

    Attributes:
        sites: per site rewritten alone. all: of all together. allowed: the largest for ``all``.
        equal: whether it is kept. declined: what was not rewritten, as plain JSON types.
    """

    sites: dict[str, float]
    all: float
    allowed: float
    equal: bool
    declined: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


def check_roundtrip(task: Task) -> Roundtrip:
    """Relative differences per site and for all, and whether the latter is allowed.

    In low precision the round trip may differ from eager float64 by twice as much as eager does.
    """
    with torch.no_grad():
        eager = first_tensor(call(task.model, task.example))
        capture = call(Capture(task.model).trace, task.example)
        modules: dict[str, nn.Module] = {
            s.name: forms.build("softmax", s)
            for s in capture.sites
            if s.legal.get("softmax") is None
        }
        alone = {name: _difference(capture, {name: m}, task, eager) for name, m in modules.items()}
        wide = eager.dtype in (torch.float32, torch.float64)
        if wide:
            together, allowed = _difference(capture, modules, task, eager), FLOAT32
        else:
            exact = _double(task)
            together = _difference(capture, modules, task, exact)
            allowed = 2 * relative(eager, exact)
    return Roundtrip(
        sites=alone,
        all=together,
        allowed=allowed,
        equal=together <= allowed,
        declined=[d.as_dict() for d in capture.declined],
    )


def _difference(
    capture: Capture, modules: dict[str, nn.Module], task: Task, expected: Tensor
) -> float:
    capture.use_modules(modules)
    out = first_tensor(call(capture, task.example))
    capture.use_modules({})
    return relative(out, expected)


def _double(task: Task) -> Tensor:
    """The eager output in float64."""

    def widen(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    model = copy.deepcopy(task.model).double()
    return first_tensor(call(model, pytree.tree_map(widen, task.example)))
