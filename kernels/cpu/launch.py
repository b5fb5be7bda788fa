"""The C++ libraries, loaded at first use and called with strides.

Every entry of the library takes one struct by address. ``refusal`` says why a kernel cannot serve
a call; ``torch_tiled`` then does. Plain calls of ``attnpass::pointwise`` and ``attnpass::softmax``
do not come here: ``pointwise_operators_cpu.cpp`` takes them from the dispatcher.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import struct
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attnpass.errors import BuildError
from attnpass.kernels.cpu import build

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3}
"""The dtypes that the kernels read, as ``Type`` in ``attention_cpu.h`` numbers them."""

MISMATCH = 2
"""The status of an entry whose struct has another size than the bytes that it was given."""

_LOG = logging.getLogger("attnpass")


@functools.cache
def library(name: str) -> ctypes.CDLL | str:
    """A library of ``build.PARTS``; a string where there is none, the reason."""
    if platform.machine() == "x86_64" and not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    try:
        return build.load(name)
    except (BuildError, OSError) as error:  # OSError: a library that cannot be loaded
        _LOG.warning("no CPU kernels (plain torch operations run instead): %s", error)
        return f"no C++ kernel: {error}"


def refusal(name: str, *tensors: Tensor | None) -> str | None:
    """Why the kernel ``name`` cannot serve these tensors, or None."""
    for x in tensors:
        if x is not None and (x.dtype not in TYPES or x.device.type != "cpu"):
            return f"{x.dtype} on {x.device} is computed by plain torch operations"
    found = library(name)
    return found if isinstance(found, str) else None


def unit_rows(x: Tensor) -> Tensor:
    """``x`` with unit stride along features, copied only where the stride is another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


_NO_ARRAY = (0,) * 6


def _array(x: Tensor | None) -> tuple[int, ...]:
    """Address, type and four strides of a tensor; a broadcast axis has stride 0."""
    if x is None:
        return _NO_ARRAY
    strides = [0 if n == 1 else st for n, st in zip(x.shape, x.stride(), strict=True)]
    return (x.data_ptr(), TYPES[x.dtype], *strides)


def run_kernel(
    name: str, entry: str, numbers: Sequence[float], tensors: Iterable[Tensor | None]
) -> bool:
    """Run an entry of the library ``name`` on the problem that numbers and tensors describe.

    The problem is packed as the entry's struct: whole numbers, one real number (the last of
    ``numbers``), then one array per tensor with four axes.

    Returns:
        False where oneDNN is switched off; nothing was computed then.
    """
    held = list(tensors)  # a temporary copy must outlive the call
    arrays = [n for x in held for n in _array(x)]
    problem = struct.pack(f"{len(numbers) - 1}qd{len(arrays)}q", *numbers, *arrays)
    status: int = getattr(library(name), entry)(problem, ctypes.c_size_t(len(problem)))
    assert status != MISMATCH, f"{entry} takes another struct"
    return status == 0
