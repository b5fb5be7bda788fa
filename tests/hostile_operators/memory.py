"""Tensors in odd places: before a page that nobody may read, expanded, cut, turned."""

from __future__ import annotations

import ctypes
import mmap
import random

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


def guarded(pick: random.Random, x: Tensor) -> Tensor:
    """``x`` with the same strides, between two pages that kill who reads them.

    Either the first entry lies right behind a page, or the last one right before a page; the first
    is then aligned to the size of an entry alone.
    """
    if x.numel() == 0:
        return x
    count = 1 + sum((n - 1) * st for n, st in zip(x.shape, x.stride(), strict=True))
    flat = torch.as_strided(x, (count,), (1,), x.storage_offset())
    room = -(-count * x.element_size() // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (first, first + PAGE + room):
        assert _LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
    at = PAGE + pick.choice([0, room - count * x.element_size()])
    held = torch.frombuffer(memory, dtype=x.dtype, count=count, offset=at)
    held.copy_(flat)
    return held.as_strided(x.shape, x.stride())


def strided(pick: random.Random, x: Tensor) -> Tensor:
    """A tensor of the shape and dtype of the contiguous ``x`` that lies otherwise in memory."""
    kind = pick.choice(["plain", "permuted", "cut", "expanded", "stepped", "windows", "negated"])
    axes = list(range(x.dim()))
    if kind == "permuted":
        order = pick.sample(axes, len(axes))
        return x.permute(order).contiguous().permute([order.index(i) for i in axes])
    if kind == "cut":
        whole = x.new_zeros([n + pick.randint(0, 3) for n in x.shape])
        for i, n in enumerate(x.shape):
            whole = whole.narrow(i, whole.shape[i] - n, n)
        return whole.copy_(x)
    if kind == "expanded":
        some = [pick.random() < 0.4 for _ in axes]
        one = x[tuple(slice(0, 1) if chosen else slice(None) for chosen in some)]
        return one.expand([-1 if n == 0 else n for n in x.shape])
    if kind == "stepped":
        return x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x
    if kind == "windows" and x.dim() > 1 and x.numel() and x.shape[-2] > 1:
        # rows that overlap: each begins one entry after the one before
        flat = x.flatten(-2)[..., : x.shape[-2] + x.shape[-1] - 1].contiguous()
        return flat.unfold(-1, x.shape[-1], 1)
    if kind == "negated" and x.is_floating_point() and x.dtype in (torch.float32, torch.float64):
        return torch.complex(x, -x).conj().imag  # a view with the negative bit
    return x
