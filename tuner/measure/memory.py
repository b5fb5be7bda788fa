"""The peak memory of one call, beyond what the process held before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from attnpass.memory import line_bytes

MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(run: Callable[[], object], *, cuda: bool = False) -> float | None:
    """MiB that a call takes at most beyond what was held before; None where nothing tells it.

    On a GPU torch's allocator counts them. On Linux the kernel does, by the peak of resident
    memory (``VmHWM``), which it resets on request: whole pages, so that a call of less than about
    a MiB reads as 0.
    """
    if cuda:
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return max(0.0, (torch.cuda.max_memory_allocated() - held) / MIB)
    try:
        _give_back()
        CLEAR.write_text("5")
        held = line_bytes(STATUS, "VmRSS")
        run()
        return max(0.0, (line_bytes(STATUS, "VmHWM") - held) / MIB)
    except (OSError, KeyError):
        return None


def _give_back() -> None:
    """Free memory goes back to the system, so that a call has to ask for it again."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
