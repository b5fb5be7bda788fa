"""What the worker process does: compile the task's model under plans, check it, time it.

Every measurement passes a correctness gate (the compiled plan against the captured one) and proves
the plan's hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attnpass.batch import call
from attnpass.capture import Capture, fresh_entry
from attnpass.errors import MeasureError
from attnpass.plan import Plan, assign
from attnpass.report import compiled_report, reset_report
from attnpass.task import load_task
from attnpass.torch_internals import keep_recompile_limits, pytree
from attnpass.tuner.measure.ablation import Ablated
from attnpass.tuner.measure.accuracy import first_tensor
from attnpass.tuner.measure.latency import interleave

GATE = 2e-3
"""Largest relative difference (float32, norm over norm) that compiled and captured may have."""


class Bench:
    """The task's model, compiled under plans, in the worker."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.task = load_task(path)
        self._call = lambda run: call(run, self.task.example)
        self.capture = self._call(Capture(self.task.model).trace)
        keep_recompile_limits()
        self.compiled: dict[str, tuple[Any, str]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Times for one request."""
        if request.get("ceiling"):
            runs, hashes = self._ceilings(), []
        else:
            pairs = [self._plan(p) for p in request["plans"]]
            runs, hashes = [r for r, _ in pairs], [h for _, h in pairs]
        calls = [lambda run=run: self._call(run) for run in runs]
        with torch.no_grad():
            times = interleave(calls, rounds=request["rounds"], synchronise=self._wait())
        return {"outcome": "ok", "times": times, "hashes": hashes}

    def _wait(self) -> Any:
        leaves = pytree.tree_leaves(self.task.example)
        cuda = any(getattr(x, "is_cuda", False) for x in leaves)
        return torch.cuda.synchronize if cuda else None

    def _plan(self, path: str | None) -> tuple[Any, str]:
        """The model compiled under a plan file, checked, and the hash of what ran."""
        plan = None if path is None else Plan.load(Path(path)).frozen()
        key = "" if plan is None else plan.hash
        if key not in self.compiled:
            options = None if plan is None else self._options(plan=plan)
            self.compiled[key] = self._checked(plan, options), key
        return self.compiled[key]

    def _options(self, **more: Any) -> dict[str, Any]:
        return {
            "inner": self.settings["inner"],
            "mode": self.settings["mode"],
            "db": self.settings["db"],
            "strict": True,
            **more,
        }

    def _compile(self, options: dict[str, Any] | None) -> Any:
        """The model through the public ``torch.compile``; code of its own per call."""
        entry = fresh_entry(self.task.model)
        if options is None:
            if self.settings["inner"] != "inductor":
                return torch.compile(entry, backend=self.settings["inner"])
            return torch.compile(entry, mode=self.settings["mode"])
        return torch.compile(entry, backend="attnpass", options=options)

    def _checked(self, plan: Any, options: dict[str, Any] | None) -> Any:
        """A compiled model that gives what the captured one gives, under the proven plan.

        Raises:
            MeasureError: another result, or another plan than asked for ran.
        """
        self.capture.use(plan)
        with torch.no_grad():
            expected = first_tensor(self._call(self.capture)).double()
            reset_report()
            run = self._compile(options)
            got = first_tensor(self._call(run)).double()
        self.capture.use(None)
        ran = compiled_report().plan
        if plan is not None and ran != plan.hash:
            raise MeasureError(f"expected plan {plan.hash} to run, got {ran or 'none'}")
        off = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        if not off <= GATE:
            raise MeasureError(
                f"expected the compiled plan within {GATE} of the captured one,"
                f" got a relative difference of {off:.2g}"
            )
        return run

    def _ceilings(self) -> list[Any]:
        """See ``Worker.ceiling``."""
        base, _ = self._plan(None)
        softmax = self._checked(None, self._options(form="softmax"))
        plans = [Ablated.of(self.capture.sites), Plan(assign(self.capture.sites, "skipat")[0])]
        bare, skipped = (self._checked(p, self._options(plan=p)) for p in plans)
        return [base, base, softmax, bare, skipped]
