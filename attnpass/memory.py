"""The memory that is free for a process, and what a forward pass keeps for its gradients."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

MEMORY = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

UNTOLD = 2**30
"""Bytes that are taken to be free where nothing tells how many are."""


class MemoryIsShortError(Exception):
    """A forward pass would keep more for its gradients than it may."""


def free_bytes(device: torch.device) -> int:
    """Bytes that a process may still take there: of the machine, and of its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        free = line_bytes(MEMORY, "MemAvailable")
    except (OSError, KeyError):
        free = UNTOLD
    with suppress(OSError, ValueError):  # without a limit the file holds "max"
        most = int((CGROUP / "memory.max").read_text())
        free = min(free, most - int((CGROUP / "memory.current").read_text()))
    return max(free, 0)


def line_bytes(file: Path, name: str) -> int:
    """Bytes of a line of a file that the Linux kernel writes.

    Raises:
        OSError: no such file. KeyError: no such line.
    """
    rows = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(rows[name].split()[0]) * 1024


@contextmanager
def kept_at_most(most: int) -> Iterator[None]:
    """Inside, a forward pass that keeps more than ``most`` bytes for its gradients is ended.

    Bytes that are kept twice count once; what is let go of counts no more.

    Raises:
        MemoryIsShortError: it would keep more.
    """
    times, total = Counter[int](), 0

    def release(address: int, size: int) -> None:
        nonlocal total
        times[address] -= 1
        total -= 0 if times[address] else size

    def pack(x: Tensor) -> Tensor:
        nonlocal total
        kept = x.detach()  # the tensor itself would hold the graph that holds it
        if x.layout is torch.strided:
            storage = x.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            total += 0 if times[address] else size
            times[address] += 1
            weakref.finalize(kept, release, address, size).atexit = False
            if total > most:
                raise MemoryIsShortError
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield
