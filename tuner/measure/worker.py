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
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from attnpass.errors import MeasureError
from attnpass.text import printable
from attnpass.tuner.measure.exchange import (
    CeilingRequest,
    CompileSettings,
    Failure,
    PlansRequest,
    Protocol,
    Reply,
    Request,
)

if TYPE_CHECKING:
    from attnpass.tuner.measure.bench import Bench


ATTEMPTS = 3
"""How often one request is asked of workers that somebody kills."""


class Worker:
    """The coordinator's handle: starts the process when needed, kills it when it hangs.

    Args:
        task: import path of the task. timeout: seconds per request.
        inner: inner compiler of the measured plans. mode: its mode. db: the database with its
            tiles. weights: digest of the model that the task must make. objective: what is timed.
            visible: GPUs that the process sees, as in CUDA_VISIBLE_DEVICES.
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
        weights: str = "",
        objective: str = "inference",
        visible: str = "",
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task, self.timeout = task, timeout
        self.settings = CompileSettings(inner, mode, db, weights, objective, visible)
        self.stopped = stopped
        self.process: SpawnProcess | None = None
        self.pipe: Connection | None = None

    def measure(self, plans: Sequence[str | None], protocol: Protocol) -> Reply:
        """Interleaved times of ``plans`` (files; None is the unchanged model), or a failure."""
        return self._ask(PlansRequest(tuple(plans), protocol))

    def ceiling(self, protocol: Protocol) -> Reply:
        """Times of the unchanged model, twice, of softmax, and of two that no plan can beat.

        The order is: model, the same again, the lossless plan, attention replaced by one read of
        q, k and v, every skippable attention block replaced by its predecessor's output.
        """
        return self._ask(CeilingRequest(protocol))

    def close(self) -> None:
        """End the process, and every process that it started."""
        if self.process is not None and self.pipe is not None:
            self.pipe.close()
            self.process.join(2)
            self._kill(self.process)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: Request) -> Reply:
        """The reply; a worker that somebody kills is started again and asked again."""
        for _ in range(ATTEMPTS):
            reply = self._ask_once(request)
            if reply.outcome != "killed":
                break
        return reply

    def _ask_once(self, request: Request) -> Reply:
        process, pipe = self._running()
        try:
            pipe.send(request)
            deadline = time.monotonic() + self.timeout
            while not pipe.poll(0.2):
                if self.stopped():
                    raise KeyboardInterrupt
                if time.monotonic() > deadline:
                    self._kill(process)
                    return Failure("timeout", f"no answer in {self.timeout:.0f} s")
            reply: Reply = pipe.recv()
            return reply
        except (EOFError, BrokenPipeError, ConnectionResetError):
            process.join(5)
            code = process.exitcode
            self._kill(process)
            if code == -signal.SIGKILL:
                return Failure("killed", "the worker was killed (SIGKILL); is memory short?")
            return Failure("crashed", f"the worker ended with exit code {code}")

    def _running(self) -> tuple[SpawnProcess, Connection]:
        """The process and its pipe, started where there is none alive."""
        if self.process is not None and not self.process.is_alive():
            self._kill(self.process)
        if self.process is None or self.pipe is None:
            self.process, self.pipe = self._start()
        return self.process, self.pipe

    def _start(self) -> tuple[SpawnProcess, Connection]:
        import torch

        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        arguments = (theirs, self.task, self.settings, torch.get_num_threads())
        process = context.Process(target=_serve, args=arguments, daemon=False)
        # inherited: Ctrl-C is for the coordinator, also while the worker still imports
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return process, pipe

    def _kill(self, process: SpawnProcess) -> None:
        if process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.is_alive():
            process.kill()
        process.join(5)
        self.process = None
        if self.pipe is not None:
            self.pipe.close()


def _serve(pipe: Connection, path: str, settings: CompileSettings, threads: int) -> None:
    """The worker's loop: one reply per request, until the pipe closes."""
    os.setpgid(0, 0)
    import torch

    torch.set_num_threads(threads)
    bench: Bench | None = None
    while True:
        try:
            request: Request = pipe.recv()
            try:
                bench = bench or _bench(path, settings)
                reply: Reply = bench.answer(request)
            except (Exception, SystemExit) as error:  # the reason goes to the coordinator
                reply = failure(error)
            pipe.send(reply)
        except (EOFError, OSError):  # the coordinator is gone
            return


def _bench(path: str, settings: CompileSettings) -> Bench:
    if settings.visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.visible
    # the coordinator needs no compiler: only the worker imports the bench
    from attnpass.tuner.measure.bench import Bench

    return Bench(path, settings)


def failure(error: BaseException) -> Failure:
    """The reply that tells the coordinator about an error of the worker; called while handling."""
    if isinstance(error, MeasureError):
        return Failure("inaccurate", str(error))
    if isinstance(error, MemoryError):
        return Failure("oom", str(error))
    # torch.compile wraps the exception of the backend
    error = getattr(error, "inner_exception", error)
    lines = str(error).strip().splitlines() or [""]
    why = printable(f"{type(error).__name__}: {lines[0][:300]}")
    outcome = "oom" if "memory" in why.lower() else "compile_error"
    return Failure(outcome, why, traceback.format_exc()[-2000:])
