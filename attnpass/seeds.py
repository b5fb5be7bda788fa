"""Random numbers that are the same in every run, and leave the caller's own alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generators() -> range:
    """The CUDA devices whose random numbers may be drawn."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what ``seed`` gives, on every device; afterwards the caller's numbers go on."""
    with torch.random.fork_rng(devices=generators()):
        torch.manual_seed(seed)
        yield
