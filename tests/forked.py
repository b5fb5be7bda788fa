"""Functions run in children of this process, which has imported torch: a few milliseconds each.

A child has a time limit and files for its output; whatever it does, its parent goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit status, negative for a signal. out, err: what it printed.
        late: whether it was killed at its limit. mib: the most memory it had, above its parent's.
    """

    code: int
    out: str
    err: str
    late: bool
    mib: float


def start(function: Callable[[], object], out: int, err: int) -> int:
    """A child in a session of its own that calls the function and exits; its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        function()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(code)


def run(
    function: Callable[[], object],
    limit: float,
    strikes: Sequence[tuple[float, Callable[[int], object]]] = (),
) -> Ended:
    """Call the function in a child, which is killed after ``limit`` seconds.

    ``strikes``: what is done to the process after how many seconds, in order.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = start(function, out.fileno(), err.fileno())
        began, late, most, floor = time.monotonic(), False, 0.0, memory(os.getpid())
        waiting = list(strikes)
        while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
            most = max(most, memory(child))
            passed = time.monotonic() - began
            if passed > limit:
                late = True
                end(child)
            while waiting and passed > waiting[0][0]:
                with suppress(ProcessLookupError):
                    waiting.pop(0)[1](child)
            time.sleep(0.005)
        end(child)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    code = os.waitstatus_to_exitcode(ended[1])
    return Ended(code, *texts, late, max(most - floor, 0.0))


def end(child: int) -> None:
    """Kill a child and all processes of its session."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def memory(process: int) -> float:
    """Resident memory in MiB that is not of files; 0 where the process is gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except (OSError, ProcessLookupError):
        pass
    return 0.0
