"""The start of a run: its task, the captured model, and the keys of all its measurements."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from attnpass import environment, fingerprint
from attnpass.batch import Batch, call
from attnpass.capture import Capture
from attnpass.errors import CaptureError
from attnpass.forms import default_length
from attnpass.plan import Plan, assign
from attnpass.report import Report
from attnpass.seeds import seeded
from attnpass.site import AttentionSite
from attnpass.store import Store, now
from attnpass.task import Task, load_task, users_code
from attnpass.torch_internals import pytree
from attnpass.tuner.measure import needed, refuse_changed, split, try_task
from attnpass.tuner.search.leaks import length, refuse_leaks
from attnpass.tuner.search.menu import form_of
from attnpass.tuner.search.settings import Settings

NOT_IDENTITY = ("refresh", "timeout", "load_timeout", "devices", "ray")
"""Settings that change neither what a run measures nor its id."""


COMPILE_S = {"inductor": 20.0}
"""Seconds that an inner compiler takes for one plan, as a guess before anything is compiled."""


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
    def limits(self) -> dict[str, float]:
        """Allowed drop by metric; that of ``Task.score`` stands under the empty name."""
        most = self.settings.max_drop
        asked = {m: x.max_drop for m, x in self.task.metrics.items()}
        return {"": most, **{m: most if x is None else x for m, x in asked.items()}}

    @property
    def legal(self) -> dict[str, list[str]]:
        """Per site the choices asked for that are legal there."""
        return {
            s.name: [c for c in self.settings.forms if _differs(s, *form_of(c))]
            for s in self.sites
        }

    def under_tiles(self, store: Store) -> Inspection:
        """The inspection for latencies under the tiles that compiled plans find in ``store``."""
        tiles = _tiles(store, environment.kernel_context(self.kind))
        return replace(self, timing={**self.timing, "tiles": tiles})

    def measured_by(self, device: Mapping[str, Any], store: Store) -> Inspection:
        """The same run with its latencies taken on another device, under keys of their own."""
        timing = {k: device.get(k, v) for k, v in self.timing.items() if k != "tiles"}
        run = _run(self.asked, timing, self.inputs)
        tiles = _tiles(store, {k: v for k, v in device.items() if k != "switches"})
        return replace(self, timing={**timing, "tiles": tiles}, run=run)

    def report(self) -> Report:
        """The verdicts of the matcher."""
        return Report(self.sites, self.capture.declined)

    def outline(self) -> dict[str, Any]:
        """A description of the search: sites, forms, the space, the time, and what is in reach."""
        rows = self.legal
        size = 1
        for row in rows.values():
            size *= len(row) + 1
        settings, items = self.settings, needed(self.settings.max_drop)
        found: dict[str, Any] = {
            "run": self.run,
            "task": settings.task,
            "sites": rows,
            "forms": list(settings.forms),
            "space": size,
            "trials": settings.limits["trials"],
            "items_needed": items,
        }
        judged = self._held_out()
        if judged is not None:
            # with not a single item lost
            found |= {"held_out": judged, "reachable": judged >= items}
        return found | {"estimated_s": round(self._seconds()), "budget_s": settings.budget or None}

    def _held_out(self) -> int | None:
        """How many items will judge plans, where the targets have a length."""
        sizes = [length(y) for _, y in self.task.validation]
        known = [n for n in sizes if n is not None]
        return sum(known[i] for i in split(known).held_out) if len(known) == len(sizes) else None

    def _seconds(self) -> float:
        """About how long the run will take: by one call of the model, and a guess per compile."""
        start = time.perf_counter()
        with torch.no_grad():
            call(self.capture, self.task.example)
        once, limits = time.perf_counter() - start, self.settings.limits
        choices = {c for row in self.legal.values() for c in row}
        compiled = 4 + len(choices) + limits["finalists"]
        timed = once * limits["rounds"] * (compiled + 6)
        scored = once * len(self.task.validation) * (1 + limits["trials"] / 2)
        recovered = self.settings.recover_budget if self.settings.recover == "distil" else 0.0
        total = compiled * COMPILE_S.get(self.settings.inner, 1.0) + timed + scored + recovered
        return min(total, self.settings.budget) if self.settings.budget else total


def inspect_task(settings: Settings, store: Store) -> Inspection:
    """The task of ``settings``, its model captured; ``store`` holds the tiles that plans find.

    The run's id does not depend on tiles, which the run itself may find.

    Raises:
        TaskError: the task is not usable, its sets share items, or Dynamo changes its results.
        CaptureError: its model has no softmax attention.
    """
    with fingerprint.files_read() as read:
        task = load_task(settings.task, limit=settings.load_timeout)
        # before the model is run: a run may leave something in its objects
        with users_code(f"the batches of {settings.task} to be read"):
            contents = task.contents()
            inputs = _inputs(task, settings)
        try_task(task)
        with users_code(f"the batches of {settings.task} to be read"):
            refuse_leaks(task, learns=settings.recover == "distil")
        capture = call(Capture(task.model).trace, task.example)
    if not capture.sites:
        why = "; ".join(str(d) for d in capture.declined[:3]) or "no softmax in its graphs"
        raise CaptureError(f"expected a model with softmax attention, found none ({why})")
    refuse_changed(task, capture)
    base = Plan(assign(capture.sites, "softmax")[0])
    capture.bind_plan(base)
    kind = _device_kind(task)
    context = {**contents.digests, **_context(capture, base, kind)}
    timing = {
        **context,
        "inner": settings.inner,
        "mode": settings.mode,
        "shapes": [[environment.shapes(batch), share] for batch, share in task.served],
        "objective": settings.objective,
        "rounds": settings.limits["rounds"],
        "seconds": settings.limits["seconds"],
    }
    asked = {k: v for k, v in asdict(settings).items() if k not in NOT_IDENTITY}
    found = Inspection(
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
        run=_run(asked, timing, inputs),
        created=now(),
    )
    return found.under_tiles(store)


def _differs(site: AttentionSite, form: str, options: Mapping[str, Any]) -> bool:
    """Whether a choice is legal at a site, and another than the form with a default length."""
    known = options.get("L") != default_length(site)
    return form != "softmax" and site.legal.get(form) is None and known


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


def _run(asked: Mapping[str, Any], timing: Mapping[str, Any], inputs: str) -> str:
    """The id of a run."""
    text = json.dumps([asked, timing, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tiles(store: Store, context: Mapping[str, object]) -> str:
    """Digest of the tiles that compiled plans will find in a context."""
    tiles = store.tiles(context)
    rows = sorted((k, *t.as_list(), t.implementation) for k, t in tiles.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
