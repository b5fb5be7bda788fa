"""The start of a run: its task, the captured model, and the keys of all its measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import environment, fingerprint
from attnpass.batch import call
from attnpass.capture import Capture
from attnpass.errors import CaptureError
from attnpass.plan import Plan, assign
from attnpass.report import Report
from attnpass.site import AttentionSite
from attnpass.store import Store, now
from attnpass.task import Task, load_task
from attnpass.torch_internals import pytree
from attnpass.tuner.measure import needed, try_task
from attnpass.tuner.search.settings import CHOICES, Settings

NOT_IDENTITY = ("refresh", "timeout", "load_timeout")
"""Settings that change neither what a run measures nor its id."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """A task and its model before anything is measured.

    Attributes:
        settings: what was asked. asked: those of them that are part of the run's identity.
        task, capture: the model, captured. base: the plan of softmax everywhere, which knows the
            sites and owns their weights.
        context: all that a score depends on. timing: all that a latency depends on.
        kind: ``cpu`` or ``cuda``. run: id of the run. created: time of this inspection.
    """

    settings: Settings
    asked: Mapping[str, Any]
    task: Task
    capture: Capture
    base: Plan
    context: Mapping[str, Any]
    timing: Mapping[str, Any]
    kind: str
    run: str
    created: str

    @property
    def sites(self) -> list[AttentionSite]:
        """The attention sites, in the model's order."""
        return self.capture.sites

    @property
    def legal(self) -> dict[str, list[str]]:
        """Per site the choices asked for that are legal there."""
        return {
            s.name: [c for c in self.settings.forms if s.legal.get(CHOICES[c][0]) is None]
            for s in self.sites
        }

    def report(self) -> Report:
        """The verdicts of the matcher."""
        return Report(self.sites, self.capture.declined)

    def outline(self) -> dict[str, Any]:
        """A description of the search, nothing measured."""
        rows = self.legal
        size = 1
        for row in rows.values():
            size *= len(row) + 1
        return {
            "run": self.run,
            "task": self.settings.task,
            "sites": rows,
            "space": size,
            "trials": self.settings.limits["trials"],
            "items_needed": needed(self.settings.max_drop),
        }


def inspect_task(settings: Settings, store: Store) -> Inspection:
    """The task of ``settings``, its model captured; ``store`` holds the tiles that plans find.

    Raises:
        TaskError: the task is not usable. CaptureError: its model has no softmax attention.
    """
    task = try_task(load_task(settings.task, limit=settings.load_timeout))
    capture = call(Capture(task.model).trace, task.example)
    if not capture.sites:
        why = "; ".join(str(d) for d in capture.declined[:3]) or "no softmax in its graphs"
        raise CaptureError(f"expected a model with softmax attention, found none ({why})")
    base = Plan(assign(capture.sites, "softmax")[0])
    capture.bind_plan(base)
    context = _context(task, capture, base)
    kind = _device_kind(task)
    timing = {
        **context,
        **environment.device(kind),
        "inner": settings.inner,
        "mode": settings.mode,
        "shapes": environment.shapes(task.example),
        "rounds": settings.limits["rounds"],
        "tiles": _tiles(store, kind),
    }
    asked = {k: v for k, v in asdict(settings).items() if k not in NOT_IDENTITY}
    text = json.dumps([asked, timing], sort_keys=True, default=str)
    run = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Inspection(
        settings, asked, task, capture, base, context, timing, kind, run, created=now()
    )


def _context(task: Task, capture: Capture, base: Plan) -> dict[str, Any]:
    """All that a score depends on."""
    graphs = [fingerprint.computation(g.normal) for g in capture.graphs]
    return {
        "structure": base.structure,
        "program": fingerprint.digest(graphs),
        "weights": fingerprint.digest(_tensors(task.model)),
        "data": task.digest(),
        "kernels": fingerprint.kernels_digest(),
        "protocol": environment.PROTOCOL,
        "torch": torch.__version__,
    }


def _device_kind(task: Task) -> str:
    """The kind of device that the task runs on."""
    leaves = pytree.tree_leaves(task.example)
    return "cuda" if any(getattr(x, "is_cuda", False) for x in leaves) else "cpu"


def _tiles(store: Store, kind: str) -> str:
    """Digest of the tiles that compiled plans will find."""
    tiles = store.tiles(environment.kernel_context(kind))
    rows = sorted((k, *t.as_list(), t.implementation) for k, t in tiles.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    held = [x for m in model.modules() for x in vars(m).values() if isinstance(x, Tensor)]
    return [*model.parameters(), *model.buffers(), *held]
