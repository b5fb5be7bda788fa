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
from typing import Any

from attnpass.errors import MeasureError


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

    from attnpass.tuner.measure.bench import Bench

    torch.set_num_threads(threads)
    bench: Any = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            bench = bench or Bench(path, settings)
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
