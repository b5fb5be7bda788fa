"""Small parts of every launch of a Triton kernel: broadcast strides, grids, constants."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

Strides = tuple[int, ...]
"""The strides of a tensor in entries, one per axis; 0 where the axis is broadcast."""


def spread(x: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, Strides]:
    """``x`` broadcast to ``shape`` without a copy, and its strides; zeros without ``x``."""
    if x is None:
        return None, (0,) * len(shape)
    wide = x.expand(shape)
    return wide, wide.stride()


def block_count(n: int, block: int) -> int:
    """The number of blocks of a size that cover ``n`` entries."""
    return -(-n // block)


def constant(form: Any) -> Any:
    """A kernel's ``Form`` with fields that every compiler takes for constants.

    Older versions of Triton do not take the plain fields of a named tuple for constants.
    """
    if triton.knobs.runtime.interpret:
        return form
    return type(form)(*map(triton.language.constexpr, form))


def programs(q: Tensor) -> int:
    """The size of a persistent grid on the device of ``q``: its number of multiprocessors."""
    if q.device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(q.device).multi_processor_count
