"""Launches the Triton kernels of the pointwise family's backward.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.call import PointwiseCall, PointwiseGradients
from attnpass.kernels.gpu.launch import Strides, block_count, constant, programs
from attnpass.kernels.gpu.pointwise_backward_triton import (
    pointwise_bias,
    pointwise_keys,
    pointwise_queries,
)
from attnpass.kernels.gpu.pointwise_triton_launch import Prepared, described, prepare, start


def pointwise_backward(grad: Tensor, call: PointwiseCall, needs_bias: bool) -> PointwiseGradients:
    """The gradients for ``grad [B, H, T, dv]``; that of the bias only where it is needed."""
    prepared = prepare(call, grad)
    q, tau, offset, gain = _queries(prepared, grad)
    k, v = _keys(prepared, grad)
    bias = _bias(prepared, grad, call.bias) if needs_bias and call.bias is not None else None
    return PointwiseGradients(
        *(q, k, v, _like(bias, call.bias), _like(tau, call.tau)),
        *(_like(offset, call.offset), _like(gain, call.gain)),
    )


def softmax_backward(
    grad: Tensor, call: PointwiseCall, lse: Tensor, delta: Tensor, needs_bias: bool
) -> PointwiseGradients:
    """The gradients of exact softmax for ``grad [B, H, T, dv]``; those of the terms are None.

    ``lse [B, H, T]`` is the log-sum-exp, ``delta [B, H, T]`` what the weights of a row times their
    gradients sum up to. A log-sum-exp of 2^11 is rounded by as much as changes weights by 1e-4.
    """
    shift = (-lse).masked_fill(lse == -math.inf, 0.0)  # a row without a kept key
    given = replace(call, h=SOFTMAX, offset=shift.unsqueeze(-1), gain=delta.unsqueeze(-1))
    return pointwise_backward(grad, given, needs_bias)._replace(offset=None, gain=None)


def _like(x: Tensor | None, given: Tensor | None) -> Tensor | None:
    """A gradient summed to the shape of its input, in its dtype; None without either."""
    return None if x is None or given is None else x.sum_to_size(given.shape).to(given.dtype)


def _inputs(prepared: Prepared, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The inputs with which the arguments of every backward kernel begin."""
    call = prepared.call
    return (grad, call.q, call.k, call.v, *prepared.terms)


def _strides(prepared: Prepared, grad: Tensor) -> tuple[Strides, ...]:
    """The strides of these inputs."""
    return (grad.stride(), *prepared.strides)


def _queries(
    prepared: Prepared, grad: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, tau ``[H]``, offset and gain ``[B, H, T, 1]``: sums over keys."""
    call, (b, h, g, t, s, _, _) = prepared.call, prepared.sizes
    dq = torch.empty_like(call.q, memory_format=torch.contiguous_format)
    blocks = block_count(t, call.tile.block_m)

    def sums(term: Tensor | None, *shape: int) -> Tensor | None:
        if term is None or call.h == SOFTMAX:
            return None
        return call.q.new_empty(shape, dtype=torch.float32)

    dtau, doffset = sums(call.tau, b, h, blocks), sums(call.offset, b, h, t, 1)
    dgain = sums(call.gain, b, h, t, 1)
    if b * h * blocks:
        form, descriptors = described(prepared, call.k, call.v)
        start(
            pointwise_queries,
            (b * h * blocks,),
            prepared,
            *(*_inputs(prepared, grad), *descriptors, dq, dtau, doffset, dgain),
            *(*_strides(prepared, grad), dq.stride()),
            *(t, s, h, h // g, call.scale, call.window, constant(form)),
        )
    # a block leaves its share of tau * dtau
    tau = None if dtau is None or call.tau is None else dtau.sum((0, 2)) / call.tau
    return dq, tau, doffset, dgain


def _keys(prepared: Prepared, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of k and v: sums over queries and over the query heads of a group."""
    call, (b, h, g, t, s, _, _) = prepared.call, prepared.sizes
    dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (call.k, call.v))
    if b * g * s:
        # a tile's rows are what a program owns: here keys, in steps of queries
        form, descriptors = described(prepared, call.q, grad)
        form = form._replace(m=call.tile.block_n, n=call.tile.block_m)
        start(
            pointwise_keys,
            (b * g * block_count(s, call.tile.block_m),),
            prepared,
            *(*_inputs(prepared, grad), *descriptors, dk, dv),
            *(*_strides(prepared, grad), dk.stride(), dv.stride()),
            *(t, s, g, h // g, call.scale, call.window, constant(form)),
        )
    return dk, dv


def _bias(prepared: Prepared, grad: Tensor, bias: Tensor) -> Tensor:
    """The gradient of the bias in float32, of its shape."""
    call, (b, h, g, t, s, _, _) = prepared.call, prepared.sizes
    shape = (1,) * (4 - bias.dim()) + bias.shape
    m, n = call.tile.block_m, call.tile.block_n
    if bias.numel() == 0 or 0 in (b, h, t, s):
        return torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
    # the positions that share an entry: all of an axis that the bias broadcasts, else one
    shared = [1 if own == size else size for own, size in zip(shape, (b, h, t, s), strict=True)]
    shared_blocks = (block_count(shared[2], m), block_count(shared[3], n))
    tiles = shape[0] * shape[1] * block_count(shape[2], m) * block_count(shape[3], n)
    shares = shared[0] * shared[1] * shared_blocks[0] * shared_blocks[1]
    # a bias that much is shared of has few tiles of its own: several programs for each
    parts = max(1, min(shares, 4 * programs(bias) // tiles))
    found = torch.empty((parts, *shape), dtype=torch.float32, device=bias.device)
    start(
        pointwise_bias,
        (tiles, parts),
        prepared,
        *(*_inputs(prepared, grad), found),
        *_strides(prepared, grad),
        *(t, s, h // g, shared[0], shared[1], *shared_blocks, shape[2], shape[3], shape[1]),
        *(call.scale, call.window, shape[2] == 1, shape[3] == 1, constant(prepared.form)),
    )
    return found.sum(0).view(bias.shape)
