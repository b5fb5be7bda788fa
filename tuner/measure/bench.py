"""The worker's side: compile the task's model under plans, check the result, time it.

Every measurement passes a correctness gate (the compiled plan against the captured one) and proves
the plan's hash.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attnpass.batch import Batch, call, fewer
from attnpass.capture import Capture, fresh_entry
from attnpass.errors import MeasureError, TaskError
from attnpass.plan import Plan, assign
from attnpass.report import compiled_report, reset_report
from attnpass.task import load_task
from attnpass.torch_internals import keep_recompile_limits, pytree
from attnpass.tuner.measure.ablation import AblationPlan
from attnpass.tuner.measure.accuracy import first_tensor
from attnpass.tuner.measure.conditions import Watch, limited
from attnpass.tuner.measure.exchange import CeilingRequest, CompileSettings, Request, Times
from attnpass.tuner.measure.gate import Gate
from attnpass.tuner.measure.latency import interleave, median_ms
from attnpass.tuner.measure.memory import peak_mib
from attnpass.tuner.measure.trial import model_digest

Model = Callable[..., Any]
"""A compiled or captured model: arguments of a call to whatever the model returns."""

Options = dict[str, Any]
"""The options of ``torch.compile(backend="attnpass")``, a plan among them."""


class Bench:
    """The task's model, compiled under plans, in the worker.

    Args:
        path: of the task. settings: how to compile.

    Raises:
        TaskError: the task makes another model than the coordinator's.
    """

    def __init__(self, path: str, settings: CompileSettings) -> None:
        self.settings = settings
        self.task = load_task(path)
        if settings.weights not in ("", model_digest(self.task.model)):
            raise TaskError(
                f"expected {path} to make the same model each time, got other weights the second"
                " time; seed it by torch.manual_seed, or load the weights from a file"
            )
        self.capture: Capture = self._run(Capture(self.task.model).trace)
        keep_recompile_limits()
        self.gate = Gate(self.task)
        self.compiled: dict[tuple[str, int], Model] = {}
        self.ablations: dict[int, list[Model]] = {}
        self.train = settings.objective == "train"

    def answer(self, request: Request) -> Times:
        """Times for one request.

        Raises:
            MeasureError: a compiled plan gives another result, or is another than asked for.
        """
        hashes: list[str] = []
        how = request.protocol
        if isinstance(request, CeilingRequest):
            models = self._ceilings(how.items)
        else:
            pairs = [self._plan(p, how.items) for p in request.plans]
            models, hashes = [m for m, _ in pairs], [h for _, h in pairs]
        served = [(fewer(batch, how.items), share) for batch, share in self.task.served]
        times, shapes = [[0.0] * how.rounds for _ in models], list[list[float]]()
        with torch.set_grad_enabled(self.train), limited(how.threads, how.pinned) as pinned:
            watch = Watch()
            for batch, share in served:
                calls = [partial(self._step, model, batch) for model in models]
                found = interleave(calls, rounds=how.rounds, synchronise=self._wait())
                shapes.append([median_ms(row) for row in found])
                for total, row in zip(times, found, strict=True):
                    total[:] = [a + share * b for a, b in zip(total, row, strict=True)]
            conditions = watch.conditions(pinned=pinned)
            peaks = [self._peak(model) for model in models] if how.memory else []
        known = [x for x in peaks if x is not None]
        by_run = [list(row) for row in zip(*shapes, strict=True)]
        whole = known if len(known) == len(models) else []
        return Times(times, hashes, conditions.as_dict(), by_run, whole)

    def _peak(self, model: Model) -> float | None:
        """MiB that the dearest example takes beyond what was held before; None if unknown."""
        cuda = self._wait() is not None
        runs = [partial(self._step, model, batch) for batch, _ in self.task.served]
        peaks = [peak_mib(run, cuda=cuda) for run in runs]
        return None if None in peaks else max(x for x in peaks if x is not None)

    def _run(self, model: Model, items: int = 0) -> Any:
        """The model's output for the example of the task, or for its first items."""
        return call(model, fewer(self.task.example, items))

    def _step(self, model: Model, batch: Batch) -> None:
        """One call as it is timed: of a training step, with its backward."""
        output = call(model, batch)
        if not self.train:
            return
        first = first_tensor(output)
        first.float().square().mean().backward()  # type: ignore[no-untyped-call]
        self.task.model.zero_grad(set_to_none=True)

    def _wait(self) -> Callable[[], None] | None:
        """The function that waits for the device, where it is asynchronous."""
        leaves = pytree.tree_leaves(self.task.example)
        cuda = any(getattr(x, "is_cuda", False) for x in leaves)
        return torch.cuda.synchronize if cuda else None

    def _plan(self, path: str | None, items: int) -> tuple[Model, str]:
        """The model compiled under a plan file, checked, and the hash of the plan that ran.

        For each number of items it is compiled on its own: sizes are constants, as served.
        """
        plan = None if path is None else Plan.load(Path(path))
        plan = plan if plan is None or self.train else plan.frozen()
        key = "" if plan is None else plan.hash
        if (key, items) not in self.compiled:
            options = None if plan is None else self._options(plan=plan)
            self.compiled[key, items] = self._checked(plan, options, items)
        return self.compiled[key, items], key

    def _options(self, **more: object) -> Options:
        s = self.settings
        return {"inner": s.inner, "mode": s.mode, "db": s.db, "strict": True, **more}

    def _compile(self, options: Options | None) -> Model:
        """The model through the public ``torch.compile``; code of its own per call."""
        entry = fresh_entry(self.task.model)
        if options is not None:
            return torch.compile(entry, backend="attnpass", options=options)
        if self.settings.inner != "inductor":
            return torch.compile(entry, backend=self.settings.inner)
        return torch.compile(entry, mode=self.settings.mode)

    def _checked(self, plan: Plan | None, options: Options | None, items: int) -> Model:
        """A compiled model that gives the result of the captured one, under the proven plan.

        Raises:
            MeasureError: another result, or another plan than asked for ran.
        """
        self.capture.use(plan)
        with torch.set_grad_enabled(self.train):
            expected = first_tensor(self._run(self.capture, items)).detach()
            reset_report()
            compiled = self._compile(options)
            got = first_tensor(self._run(compiled, items)).detach()
        self.capture.use(None)
        # a graph that no entry changes runs without a plan, as under the empty one
        ran = compiled_report().plan or Plan({}).hash
        if plan is not None and ran != plan.hash:
            raise MeasureError(f"expected plan {plan.hash} to run, got {ran}")
        self.gate.check(plan, fewer(self.task.example, items), expected, got)
        return compiled

    def _ceilings(self, items: int) -> list[Model]:
        """The five models of ``Worker.ceiling``."""
        base, _ = self._plan(None, items)
        if items not in self.ablations:
            sites = self.capture.sites
            lossless, skipat = (Plan(assign(sites, form)[0]) for form in ("softmax", "skipat"))
            plans = [lossless, AblationPlan.of(sites), skipat]
            found = [self._checked(p, self._options(plan=p), items) for p in plans]
            self.ablations[items] = found
            self.compiled[lossless.hash, items] = found[0]
        return [base, base, *self.ablations[items]]
