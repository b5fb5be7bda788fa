"""Calls the C++ kernels of hydra, or plain torch where they refuse.

Shapes: B batch, H heads, T queries, S keys, d head dim, C chunks of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attnpass.kernels import torch_tiled
from attnpass.kernels.call import HydraCall, HydraGradients
from attnpass.kernels.cpu.launch import refusal, run_kernel, unit_rows
from attnpass.kernels.shapes import heads_last

TOKENS = 64
"""A chunk of fewer tokens is not worth a thread."""


class Problem(NamedTuple):
    """The numbers and arrays that both directions of one call share."""

    numbers: tuple[float, ...]
    inputs: tuple[Tensor | None, ...]
    sums_shape: tuple[int, int, int, int]

    def sums(self) -> Tensor:
        """Memory for one sum per chunk, ``[B, C, H, d]`` in float32, d padded to 16."""
        return torch.empty(self.sums_shape, dtype=torch.float32)


def problem(call: HydraCall) -> Problem:
    """A call as the kernels take it, cut into about as many chunks as there are threads."""
    (b, h, t, d), s = call.q.shape, call.k.shape[2]
    chunks = -(-torch.get_num_threads() // max(1, b))
    chunks = max(1, min(chunks, -(-s // TOKENS)))
    inputs = (
        *(unit_rows(x) for x in (call.q, call.k, call.v)),
        None if call.keep is None else call.keep.expand(b, 1, 1, s),
        None if call.gain is None else unit_rows(call.gain.float()),
    )
    numbers = (b, h, t, s, d, call.causal, chunks, call.eps)
    return Problem(numbers, inputs, (b, chunks, h, -(-d // 16) * 16))


def write(given: Problem, out: Tensor, sums: Tensor) -> bool:
    """Write the output ``[B, H, T, d]``; false where oneDNN is switched off."""
    arrays = (*given.inputs, out, sums, *[None] * 6)  # the backward's six
    return run_kernel("hydra", "hydra", given.numbers, arrays)


def hydra(call: HydraCall) -> Tensor:
    """``[B, H, T, d]``; see ``HydraCall``."""
    if not refusal("hydra", call.q, call.k, call.v):
        given, out = problem(call), heads_last(call.q, call.q.shape[3])
        if write(given, out, given.sums()):
            return out
    return torch_tiled.hydra(call)


def hydra_backward(grad: Tensor, call: HydraCall) -> HydraGradients:
    """The gradients for ``grad [B, H, T, d]``; see ``HydraCall``."""
    if not refusal("hydra", call.q, call.k, call.v):
        given, gain = problem(call), call.gain
        dq, dk, dv = (
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in (call.q, call.k, call.v)
        )
        dgain = given.sums()
        outputs = (None, given.sums(), given.sums(), unit_rows(grad), dq, dk, dv, dgain)
        if run_kernel("hydra", "hydra_backward", given.numbers, (*given.inputs, *outputs)):
            if gain is None:
                return HydraGradients(dq, dk, dv, None)
            total = dgain.sum((0, 1))[:, : call.q.shape[3]].to(gain.dtype)
            return HydraGradients(dq, dk, dv, total.contiguous().view(gain.shape))
    return torch_tiled.hydra_backward(grad, call)
