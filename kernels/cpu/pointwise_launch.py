"""Calls the C++ kernels of the pointwise family, or plain torch where they refuse.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim,
C chunks of keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from attnpass.kernels import torch_softmax, torch_tiled
from attnpass.kernels.activations import EXACT, SOFTMAX, H
from attnpass.kernels.call import Normalised, PointwiseCall, PointwiseGradients, Sizes
from attnpass.kernels.cpu.launch import refusal, run_kernel, unit_rows
from attnpass.kernels.shapes import heads_last, without_positions

_NUMBERS = {h: i for i, h in enumerate((*H, SOFTMAX))}
"""How the kernels know an h: by its place."""


def _spelled(call: PointwiseCall) -> PointwiseCall:
    """The call in the terms that the kernels have: no positions, no h of a GPU."""
    call = without_positions(call) if call.positional else call
    return replace(call, h=EXACT[call.h]) if call.h in EXACT else call


def _numbers(call: PointwiseCall, sizes: Sizes) -> list[int]:
    """The numbers with which a problem begins; a column block is a multiple of two vectors."""
    tile = call.tile
    blocks = (tile.block_m, -(-tile.block_n // 32) * 32, tile.heads)
    return [*sizes, *blocks, _NUMBERS[call.h], call.causal]


def _inputs(call: PointwiseCall) -> list[Tensor | None]:
    """Q to gain, broadcast to four axes without a copy; tau is ``[1, 1, 1, H]``."""
    full = (*call.q.shape[:3], call.k.shape[2])
    row = (*call.q.shape[:3], 1)
    return [
        *(unit_rows(x) for x in (call.q, call.k, call.v)),
        *(None if x is None else x.expand(full) for x in (call.bias, call.keep)),
        None if call.tau is None else call.tau.float().view(1, 1, 1, -1),
        *(None if x is None else x.float().expand(row) for x in (call.offset, call.gain)),
    ]


def pointwise(call: PointwiseCall) -> Tensor:
    """``[B, H, T, dv]``; see ``PointwiseCall``."""
    call = _spelled(call)
    if not refusal("pointwise", call.q, call.k, call.v, call.bias):
        out = heads_last(call.q, call.v.shape[3])
        numbers = (*_numbers(call, call.sizes), call.scale)
        if run_kernel("pointwise", "pointwise", numbers, (*_inputs(call), out, None)):
            return out
    return torch_tiled.pointwise(call)


def softmax(call: PointwiseCall) -> Normalised:
    """``softmax(scale q.k + bias) v`` and its log-sum-exp; the kernel takes a scale above 0."""
    if call.scale > 0 and not refusal("pointwise", call.q, call.k, call.v, call.bias):
        out = heads_last(call.q, call.v.shape[3])
        lse = call.q.new_empty(out.shape[:3], dtype=torch.float32)
        numbers = (*_numbers(call, call.sizes), call.scale)
        tensors = (*_inputs(call), out, lse.unsqueeze(-1))
        if run_kernel("pointwise", "pointwise", numbers, tensors):
            return Normalised(out, lse)
    return torch_softmax.softmax(call)


def softmax_backward(
    grad: Tensor,
    call: PointwiseCall,
    lse: Tensor,
    delta: Tensor,
    needs_bias: bool,
    out: Tensor | None = None,
) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``, from ``lse`` and ``delta``, both ``[B, H, T]``.

    The kernel refuses a log-sum-exp so large that its rounding would change weights.
    See ``torch_softmax.softmax_backward``.
    """
    if call.scale > 0 and lse.dtype == torch.float32:
        rows = _Rows(lse.unsqueeze(-1), delta.unsqueeze(-1), out)
        found = _by_kernel(grad, call, needs_bias and call.bias is not None, rows)
        if found is not None:
            return found
    return torch_softmax.softmax_backward(grad, call, delta, needs_bias, out)


def pointwise_backward(grad: Tensor, call: PointwiseCall, needs_bias: bool) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``; that of the bias only where it is needed."""
    given = call.bias
    needs_bias = needs_bias and given is not None
    found = _backward(grad, _spelled(call), needs_bias)
    if call.positional and found.bias is not None and given is not None:
        # slopes make the bias of the kernel wider than the given one
        return found._replace(bias=found.bias.sum_to_size(given.shape).to(given.dtype))
    return found


def _backward(grad: Tensor, call: PointwiseCall, needs_bias: bool) -> PointwiseGradients:
    """The gradients of a call without positions."""
    found = _by_kernel(grad, call, needs_bias)
    return torch_tiled.pointwise_backward(grad, call, needs_bias) if found is None else found


class _Rows(NamedTuple):
    """What the backward of softmax knows of the rows: ``[B, H, T, 1]``, but for the output."""

    lse: Tensor
    delta: Tensor
    out: Tensor | None


def _by_kernel(
    grad: Tensor, call: PointwiseCall, needs_bias: bool, rows: _Rows | None = None
) -> PointwiseGradients | None:
    """The gradients by the C++ kernel, None where it refuses."""
    # threads share the keys: each would add to a bias that all keys share
    shared = needs_bias and call.bias is not None and (1, *call.bias.shape)[-1] < call.k.shape[2]
    if not shared and not refusal("pointwise_backward", call.q, call.k, call.v, call.bias):
        sizes = call.sizes
        results = _results(call, sizes, needs_bias)
        numbers = (*_numbers(call, sizes), results.q.shape[0], needs_bias, call.scale)
        given = call if rows is None else replace(call, offset=rows.lse)
        delta, out = (None, None) if rows is None else rows[1:]
        out = None if out is None else unit_rows(out)
        tensors = (*_inputs(given), unit_rows(grad), *results.arrays(sizes), delta, out)
        if run_kernel("pointwise_backward", "pointwise_backward", numbers, tensors):
            return results.gradients(call)
    return None


class _Results(NamedTuple):
    """The arrays that the backward kernel writes.

    Sums over keys are kept apart per chunk of keys, so that the same number of threads gives the
    same bits: q is ``[C, B, H, T, d]``, tau ``[C, B, H]``, offset and gain ``[C, B, H, T, 1]``,
    and the bias has its own shape, all in float32 but for a q of one chunk.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    tau: Tensor | None
    offset: Tensor | None
    gain: Tensor | None

    def arrays(self, sizes: Sizes) -> list[Tensor | None]:
        """The arrays with four axes, of sums per chunk the first: the kernel finds the others."""
        b, h, _, t, s, _, _ = sizes
        bias = None if self.bias is None else self.bias.expand(b, h, t, s)
        tau = None if self.tau is None else self.tau[0].view(b, h, 1, 1)
        rows = [None if x is None else x[0] for x in (self.offset, self.gain)]
        return [self.q[0], self.k, self.v, bias, tau, *rows]

    def gradients(self, call: PointwiseCall) -> PointwiseGradients:
        """The sums over chunks in the shapes and dtypes of the inputs."""
        q = self.q[0] if self.q.shape[0] == 1 else self.q.sum(0)
        tau = None if self.tau is None else self.tau.sum((0, 1))
        offset, gain = (None if x is None else x.sum(0) for x in (self.offset, self.gain))
        return PointwiseGradients(
            q.to(call.q.dtype),
            self.k,
            self.v,
            _like(self.bias, call.bias),
            _like(tau, call.tau),
            _like(offset, call.offset),
            _like(gain, call.gain),
        )


def _results(call: PointwiseCall, sizes: Sizes, needs_bias: bool) -> _Results:
    """The arrays before the kernel runs: zero where it adds, not initialised elsewhere."""
    b, h, g, t, s, d, _ = sizes
    threads, blocks = torch.get_num_threads(), -(-s // call.tile.block_n)
    chunks = max(1, min(blocks, threads if needs_bias else -(-threads // max(1, b * g))))
    k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (call.k, call.v))
    offset, gain = (
        None if x is None else torch.empty((chunks, b, h, t, 1), dtype=torch.float32)
        for x in (call.offset, call.gain)
    )
    needed = call.bias if needs_bias else None
    return _Results(
        q=torch.empty((chunks, b, h, t, d), dtype=torch.float32 if chunks > 1 else call.q.dtype),
        k=k,
        v=v,
        bias=None if needed is None else torch.zeros(needed.shape, dtype=torch.float32),
        tau=None if call.tau is None else torch.zeros((chunks, b, h), dtype=torch.float32),
        offset=offset,
        gain=gain,
    )


def _like(x: Tensor | None, given: Tensor | None) -> Tensor | None:
    """A gradient summed to the shape of its input, in its dtype; None without either."""
    return None if x is None or given is None else x.sum_to_size(given.shape).to(given.dtype)
