"""What every launch of a Triton kernel needs: broadcast strides, block counts, constants."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

Strides = tuple[int, ...]


def spread(x: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, Strides]:
    """``x`` broadcast to ``shape`` without a copy, and its strides; zeros where there is none."""
    if x is None:
        return None, (0,) * len(shape)
    wide = x.expand(shape)
    return wide, wide.stride()


def block_count(n: int, block: int) -> int:
    """How many blocks of a size cover ``n``."""
    return -(-n // block)


def constant(form: Any) -> Any:
    """A form as a compiled kernel takes it: older compilers see plain fields as no constants."""
    if triton.knobs.runtime.interpret:
        return form
    return type(form)(*map(triton.language.constexpr, form))


def programs(q: Tensor) -> int:
    """How many programs a persistent grid has: one for each multiprocessor."""
    if q.device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(q.device).multi_processor_count
