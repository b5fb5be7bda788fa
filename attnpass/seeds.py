"""Random numbers that repeat in every run and leave the caller's generators unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generators() -> range:
    """The indices of the CUDA devices that are in use; none before CUDA is initialised."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, every device's generator starts at ``seed``; afterwards it has its old state."""
    with torch.random.fork_rng(devices=generators()):
        torch.manual_seed(seed)
        yield
