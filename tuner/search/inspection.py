"""The start of a run: its task, the captured model, and the keys of all its measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from attnpass import environment, fingerprint
from attnpass.batch import Batch, call
from attnpass.capture import Capture
from attnpass.errors import CaptureError
from attnpass.plan import Plan, assign
from attnpass.report import Report
from attnpass.seeds import seeded
from attnpass.site import AttentionSite
from attnpass.store import Store, now
from attnpass.task import Task, load_task, users_code
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
        inputs: digest of the batches that plans are calibrated and distilled on.
        read: files that were opened to load the task. opaque: types of its objects that show no
        content, so that nothing measured now can be known again by another process.
        kind: ``cpu`` or ``cuda``. run: id of the run. created: time of this inspection.
    """

    settings: Settings
    asked: Mapping[str, Any]
    task: Task
    capture: Capture
    base: Plan
    context: Mapping[str, Any]
    timing: Mapping[str, Any]
    inputs: str
    read: frozenset[str]
    opaque: tuple[str, ...]
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
    with fingerprint.files_read() as read:
        task = load_task(settings.task, limit=settings.load_timeout)
        # before the model is run: a run may leave something in its objects
        with users_code(f"the batches of {settings.task} to be read"):
            contents = task.contents()
            inputs = _inputs(task, settings)
        try_task(task)
        capture = call(Capture(task.model).trace, task.example)
    if not capture.sites:
        why = "; ".join(str(d) for d in capture.declined[:3]) or "no softmax in its graphs"
        raise CaptureError(f"expected a model with softmax attention, found none ({why})")
    base = Plan(assign(capture.sites, "softmax")[0])
    capture.bind_plan(base)
    kind = _device_kind(task)
    context = {**contents.digests, **_context(capture, base, kind)}
    timing = {
        **context,
        "inner": settings.inner,
        "mode": settings.mode,
        "shapes": environment.shapes(task.example),
        "rounds": settings.limits["rounds"],
        "tiles": _tiles(store, kind),
    }
    asked = {k: v for k, v in asdict(settings).items() if k not in NOT_IDENTITY}
    text = json.dumps([asked, timing, inputs], sort_keys=True, default=str)
    return Inspection(
        settings=settings,
        asked=asked,
        task=task,
        capture=capture,
        base=base,
        context=context,
        timing=timing,
        inputs=inputs,
        read=frozenset(read),
        opaque=contents.opaque,
        kind=kind,
        run=hashlib.sha256(text.encode()).hexdigest()[:12],
        created=now(),
    )


def _context(capture: Capture, base: Plan, kind: str) -> dict[str, Any]:
    """All that a score depends on beside the task itself."""
    graphs = [fingerprint.computation(g.normal) for g in capture.graphs]
    return {
        **environment.device(kind),
        "structure": base.structure,
        "program": fingerprint.digest(graphs),
        "kernels": fingerprint.kernels_digest(),
        "protocol": environment.PROTOCOL,
        "torch": torch.__version__,
        "switches": environment.switches(),
    }


def _inputs(task: Task, settings: Settings) -> str:
    """Digest of the calibration batches, and where a run distils, of what it trains on."""
    batches: list[object] = [list(task.calibration)]
    if settings.recover == "distil":
        first = [_batches(task.recovery, range(min(1, len(task.recovery)))) for _ in range(2)]
        # augmented by other random numbers than torch's: what the batches are made of counts
        fixed = first[0] == first[1]
        every = _batches(task.recovery, range(len(task.recovery))) if fixed else ""
        batches += [every, task.recovery]
    return fingerprint.Walk().digest(batches)


def _batches(source: Sequence[Batch], which: range) -> str:
    """Digest of batches, each access of which may augment it anew."""
    with seeded(0):
        return fingerprint.Walk().digest([source[i] for i in which])


def _device_kind(task: Task) -> str:
    """The kind of device that the task runs on."""
    leaves = pytree.tree_leaves(task.example)
    return "cuda" if any(getattr(x, "is_cuda", False) for x in leaves) else "cpu"


def _tiles(store: Store, kind: str) -> str:
    """Digest of the tiles that compiled plans will find."""
    tiles = store.tiles(environment.kernel_context(kind))
    rows = sorted((k, *t.as_list(), t.implementation) for k, t in tiles.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
