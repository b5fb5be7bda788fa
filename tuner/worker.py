"""A spawned process that compiles and times, so that a crash or a hang never ends the run.

The worker gets a task path and plan files and answers with plain numbers. Every measurement passes
a correctness gate (the compiled plan against the captured one) and proves the plan's hash.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attnpass.errors import MeasureError

GATE = 2e-3
"""Largest relative difference (float32, norm over norm) that compiled and captured may have."""


class Worker:
    """The coordinator's handle: starts the process when needed, kills it when it hangs.

    Args:
        task: import path of the task. timeout: seconds per request.
        inner: inner compiler of the measured plans. mode: its mode. db: where its tiles are.
        stopped: asked while waiting; true ends the wait with KeyboardInterrupt.
    """

    def __init__(
        self,
        task: str,
        *,
        timeout: float = 900,
        inner: str = "inductor",
        mode: str | None = None,
        db: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task, self.timeout = task, timeout
        self.settings = {"inner": inner, "mode": mode, "db": db}
        self.stopped = stopped
        self.process: Any = None
        self.pipe: Connection | None = None

    def measure(self, plans: list[str | None], *, rounds: int) -> dict[str, Any]:
        """Interleaved times of ``plans`` (files; None is the unchanged model).

        Returns ``{"outcome": "ok", "times": [[ms]], "hashes": [...]}``, or an outcome of
        ``compile_error, inaccurate, oom, timeout, crashed`` with ``why``.
        """
        return self._ask({"plans": plans, "rounds": rounds})

    def ceiling(self, *, rounds: int) -> dict[str, Any]:
        """Times of the unchanged model, twice, and of two that no plan can beat.

        The order is: model, the same again, softmax re-emitted, attention replaced by one touch
        of q, k and v, every skippable attention block replaced by its predecessor's output.
        """
        return self._ask({"ceiling": True, "rounds": rounds})

    def close(self) -> None:
        """End the process, and whatever it started."""
        if self.process is not None and self.pipe is not None:
            self.pipe.close()
            self.process.join(2)
            self._kill()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.process is None or not self.process.is_alive():
            self._start()
        assert self.pipe is not None
        try:
            self.pipe.send(request)
            deadline = time.monotonic() + self.timeout
            while not self.pipe.poll(0.2):
                if self.stopped():
                    raise KeyboardInterrupt
                if time.monotonic() > deadline:
                    self._kill()
                    return {"outcome": "timeout", "why": f"no answer in {self.timeout:.0f} s"}
            reply: dict[str, Any] = self.pipe.recv()
            return reply
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(5)
            code = self.process.exitcode
            self._kill()
            outcome = "oom" if code == -signal.SIGKILL else "crashed"
            return {"outcome": outcome, "why": f"the worker ended with exit code {code}"}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        import torch

        arguments = (theirs, self.task, self.settings, torch.get_num_threads())
        process = context.Process(target=_serve, args=arguments, daemon=False)
        process.start()
        self.process = process
        theirs.close()

    def _kill(self) -> None:
        pid = self.process.pid
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if self.process.is_alive():
            self.process.kill()
        self.process.join(5)
        self.process = None
        if self.pipe is not None:
            self.pipe.close()


def _serve(pipe: Connection, path: str, settings: dict[str, Any], threads: int) -> None:
    """The worker's loop."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    bench: Any = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            bench = bench or _Bench(path, settings)
            pipe.send(bench.answer(request))
        except MeasureError as error:
            pipe.send({"outcome": "inaccurate", "why": str(error)})
        except MemoryError as error:
            pipe.send({"outcome": "oom", "why": str(error)})
        except Exception as error:  # the reason goes to the coordinator
            # torch.compile wraps what the backend raised
            error = getattr(error, "inner_exception", error)
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
            outcome = "oom" if "memory" in why.lower() else "compile_error"
            pipe.send({"outcome": outcome, "why": why, "trace": traceback.format_exc()[-2000:]})


class _Bench:
    """The task's model, compiled under plans, in the worker."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        import torch

        from attnpass.capture import Capture, call
        from attnpass.task import load_task

        self.torch, self.settings = torch, settings
        self.task = load_task(path)
        self._call = lambda run: call(run, self.task.example)
        self.capture = self._call(Capture(self.task.model).trace)
        config: Any = torch._dynamo.config
        config.recompile_limit = 64
        config.accumulated_recompile_limit = 4096
        config.fail_on_recompile_limit_hit = True
        self.compiled: dict[str, tuple[Any, str]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Times for one request."""
        from attnpass.tuner.latency import interleave

        if request.get("ceiling"):
            runs, hashes = self._ceilings(), []
        else:
            pairs = [self._plan(p) for p in request["plans"]]
            runs, hashes = [r for r, _ in pairs], [h for _, h in pairs]
        calls = [lambda run=run: self._call(run) for run in runs]
        with self.torch.no_grad():
            times = interleave(calls, rounds=request["rounds"], synchronise=self._wait())
        return {"outcome": "ok", "times": times, "hashes": hashes}

    def _wait(self) -> Any:
        leaves = self.torch.utils._pytree.tree_leaves(self.task.example)
        cuda = any(getattr(x, "is_cuda", False) for x in leaves)
        return self.torch.cuda.synchronize if cuda else None

    def _plan(self, path: str | None) -> tuple[Any, str]:
        """The model compiled under a plan file, checked, and the hash of what ran."""
        from attnpass.plan import Plan

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
        from attnpass.capture import fresh_entry

        entry = fresh_entry(self.task.model)
        if options is None:
            if self.settings["inner"] != "inductor":
                return self.torch.compile(entry, backend=self.settings["inner"])
            return self.torch.compile(entry, mode=self.settings["mode"])
        return self.torch.compile(entry, backend="attnpass", options=options)

    def _checked(self, plan: Any, options: dict[str, Any] | None) -> Any:
        """A compiled model that gives what the captured one gives, under the proven plan.

        Raises:
            MeasureError: another result, or another plan than asked for ran.
        """
        from attnpass.report import compiled_report, reset_report
        from attnpass.tuner.accuracy import first_tensor

        self.capture.use(plan)
        with self.torch.no_grad():
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
        from attnpass.plan import Plan, assign
        from attnpass.tuner.ablation import Ablated

        base, _ = self._plan(None)
        softmax = self._checked(None, self._options(form="softmax"))
        plans = [Ablated.of(self.capture.sites), Plan(assign(self.capture.sites, "skipat")[0])]
        bare, skipped = (self._checked(p, self._options(plan=p)) for p in plans)
        return [base, base, softmax, bare, skipped]
