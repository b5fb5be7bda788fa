"""The C++ kernels: compiled at first use by torch's own machinery, cached, called with strides.

Where they cannot serve a call (``refusal`` says why), ``torch_tiled.py`` does.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnpass.kernels import torch_tiled as tiled
from attnpass.kernels.shapes import heads_last, lowered
from attnpass.torch_internals import load_cpp

H = ("sigmoid", "relu", "relu2", "gelu", "softplus", "identity", "relu6")
"""The functions in the order of ``of`` in ``attention_cpu.h``."""

EXACT = {"sigmoid_tanh": "sigmoid"}
"""What a CPU computes for functions that only a GPU has a shortcut for."""

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3}

MISMATCH = 2
"""What an entry answers where the problem is not of its size."""

_LOG = logging.getLogger("attnpass")


_NONE = (0,) * 6


def _array(x: Tensor | None) -> tuple[int, ...]:
    """Address, type and four strides; a broadcast axis has stride 0."""
    if x is None:
        return _NONE
    strides = [0 if n == 1 else st for n, st in zip(x.shape, x.stride(), strict=True)]
    return (x.data_ptr(), TYPES[x.dtype], *strides)


@functools.cache
def library(name: str) -> Any:
    """The compiled ``name``_cpu.cpp, or the reason, as a string, why there is none."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return f"no AVX-512 here ({torch.backends.cpu.get_cpu_capability()})"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    here = Path(__file__).parent
    source = (here / "attention_cpu.h").read_text() + (here / f"{name}_cpu.cpp").read_text()
    try:
        return load_cpp(source)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        _LOG.warning(
            "expected a C++ compiler for the CPU kernels, got: %s; install g++ or set $CXX"
            " (plain torch operations run instead)",
            reason,
        )
        return f"no C++ kernel: {reason}"


def refusal(name: str, *tensors: Tensor | None) -> str | None:
    """Why the kernel ``name`` cannot serve these tensors, or None."""
    for x in tensors:
        if x is not None and (x.dtype not in TYPES or x.device.type != "cpu"):
            return f"{x.dtype} on {x.device} is computed by plain torch operations"
    found = library(name)
    return found if isinstance(found, str) else None


def _rows(x: Tensor) -> Tensor:
    """``x`` with unit stride along features, copied only where it has none."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _call(name: str, entry: str, numbers: Sequence[float], tensors: Iterable[Any]) -> bool:
    """Run an entry of ``name``_cpu.cpp; false where oneDNN is switched off.

    The problem is packed as the kernel's struct: whole numbers, one real one, then the arrays.
    """
    held = list(tensors)
    arrays = [n for x in held for n in _array(x)]
    problem = struct.pack(f"{len(numbers) - 1}qd{len(arrays)}q", *numbers, *arrays)
    status: int = getattr(library(name), entry)(problem, ctypes.c_size_t(len(problem)))
    assert status != MISMATCH, f"{entry} takes another struct"
    return status == 0


def _inputs(q: Tensor, k: Tensor, *rest: Tensor | None) -> list[Tensor | None]:
    """Q to gain, broadcast to four axes without a copy; tau is ``[1, 1, 1, H]``."""
    v, bias, keep, tau, offset, gain = rest
    assert v is not None
    full, row = (*q.shape[:3], k.shape[2]), (*q.shape[:3], 1)
    return [
        *(_rows(x) for x in (q, k, v)),
        *(None if x is None else x.expand(full) for x in (bias, keep)),
        None if tau is None else tau.float().view(1, 1, 1, -1),
        *(None if x is None else x.float().expand(row) for x in (offset, gain)),
    ]


def _sizes(q: Tensor, k: Tensor, v: Tensor, h: str, causal: bool, tile: list[int]) -> list[int]:
    """The first numbers of a problem; a column block is a multiple of two vectors."""
    (b, heads, t, d), (g, s), dv = q.shape, k.shape[1:3], v.shape[3]
    return [b, heads, g, t, s, d, dv, tile[0], -(-tile[1] // 32) * 32, tile[4], H.index(h), causal]


def pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    tau: Tensor | None,
    offset: Tensor | None,
    gain: Tensor | None,
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
    slopes: Tensor | None = None,
    lengths: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """``[B, H, T, dv]``; see ``ops.pointwise``."""
    if slopes is not None or lengths is not None or window:
        bias, keep = lowered(q, k, bias, keep, causal, slopes, lengths, window)
    h = EXACT.get(h, h)
    rest = (scale, h, causal, tile)
    if refusal("pointwise", q, k, v, bias):
        return tiled.pointwise(q, k, v, bias, keep, tau, offset, gain, *rest)
    out = heads_last(q, v.shape[3])
    inputs = _inputs(q, k, v, bias, keep, tau, offset, gain)
    numbers = (*_sizes(q, k, v, h, causal, tile), scale)
    if _call("pointwise", "pointwise", numbers, (*inputs, out)):
        return out
    return tiled.pointwise(q, k, v, bias, keep, tau, offset, gain, *rest)


def pointwise_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    tau: Tensor | None,
    offset: Tensor | None,
    gain: Tensor | None,
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
    needs_bias: bool,
    slopes: Tensor | None = None,
    lengths: Tensor | None = None,
    window: int = 0,
) -> list[Tensor]:
    """Gradients of q, k, v, bias, tau, offset, gain; see ``ops.pointwise_backward``."""
    if slopes is not None or lengths is not None or window:
        more, keep = lowered(q, k, bias, keep, causal, slopes, lengths, window)
        given = (q, k, v, more, keep, tau, offset, gain, scale, h, causal, tile)
        found = pointwise_backward(grad, *given, needs_bias and bias is not None)
        if bias is not None and needs_bias:
            found[3] = found[3].sum_to_size(bias.shape).to(bias.dtype)
        else:
            found[3] = q.new_empty(0)
        return found
    h = EXACT.get(h, h)
    rest = (grad, q, k, v, bias, keep, tau, offset, gain, scale, h, causal, tile, needs_bias)
    (b, heads, t, d), (g, s) = q.shape, k.shape[1:3]
    biased = bias is not None and needs_bias
    # threads share the keys: each would add to a bias that all keys share
    if refusal("pointwise_backward", q, k, v, bias) or (
        bias is not None and biased and bias.shape[-1] == 1 < s
    ):
        return tiled.pointwise_backward(*rest)
    inputs = _inputs(q, k, v, bias, keep, tau, offset, gain)
    # sums over keys are kept apart per chunk: the same threads give the same bits
    threads, blocks = torch.get_num_threads(), -(-s // tile[1])
    chunks = max(1, min(blocks, threads if biased else -(-threads // max(1, b * g))))
    dq = torch.empty((chunks, b, heads, t, d))
    dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    dbias = torch.zeros(bias.shape) if bias is not None and biased else None
    dtau = None if tau is None else torch.zeros((chunks, b, heads))
    doffset, dgain = (
        None if x is None else torch.empty((chunks, b, heads, t, 1)) for x in (offset, gain)
    )
    wide = None if dbias is None else dbias.expand(b, heads, t, s)
    numbers = (*_sizes(q, k, v, h, causal, tile), chunks, biased, scale)
    parts = [None if x is None else x[0].view(b, heads, -1, 1) for x in (dtau, doffset, dgain)]
    tensors = (*inputs, _rows(grad), dq[0], dk, dv, wide, *parts)
    if not _call("pointwise_backward", "pointwise_backward", numbers, tensors):
        return tiled.pointwise_backward(*rest)
    sums = (
        (dbias, bias),
        (None if dtau is None else dtau.sum((0, 1)), tau),
        *((None if x is None else x.sum(0), y) for x, y in ((doffset, offset), (dgain, gain))),
    )
    return [
        (dq[0] if chunks == 1 else dq.sum(0)).to(q.dtype),
        dk,
        dv,
        *(
            q.new_empty(0) if x is None or y is None else x.sum_to_size(y.shape).to(y.dtype)
            for x, y in sums
        ),
    ]


def _hydra(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, gain: Tensor | None, *rest: Any
) -> tuple[list[int | float], list[Any], Any]:
    """The numbers and arrays that both directions share, and how sums per chunk are made."""
    (b, h, t, d), s = q.shape, k.shape[2]
    causal, eps = rest
    chunks = -(-torch.get_num_threads() // max(1, b))
    chunks = max(1, min(chunks, -(-s // 64)))

    def sums() -> Tensor:
        return torch.empty((b, chunks, h, -(-d // 16) * 16))

    inputs = [
        *(_rows(x) for x in (q, k, v)),
        None if keep is None else keep.expand(b, 1, 1, s),
        None if gain is None else _rows(gain.float()),
    ]
    return [b, h, t, s, d, causal, chunks, eps], inputs, sums


def hydra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None,
    causal: bool,
    eps: float,
    tile: list[int],
) -> Tensor:
    """``[B, H, T, d]``; see ``ops.hydra``."""
    if not refusal("hydra", q, k, v):
        numbers, inputs, sums = _hydra(q, k, v, keep, gain, causal, eps)
        out = heads_last(q, q.shape[3])
        if _call("hydra", "hydra", numbers, (*inputs, out, sums(), *[None] * 6)):
            return out
    return tiled.hydra(q, k, v, keep, gain, causal, eps, tile)


def hydra_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None,
    causal: bool,
    eps: float,
    tile: list[int],
) -> list[Tensor]:
    """Gradients of q, k, v, gain; see ``ops.hydra_backward``."""
    if not refusal("hydra", q, k, v):
        numbers, inputs, sums = _hydra(q, k, v, keep, gain, causal, eps)
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        dgain = sums()
        arrays = (*inputs, None, sums(), sums(), _rows(grad), *found, dgain)
        if _call("hydra", "hydra_backward", numbers, arrays):
            if gain is None:
                return [*found, q.new_empty(0)]
            total = dgain.sum((0, 1))[:, : q.shape[3]].to(gain.dtype)
            return [*found, total.contiguous().view(gain.shape)]
    return tiled.hydra_backward(grad, q, k, v, keep, gain, causal, eps, tile)
