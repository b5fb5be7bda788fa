"""The Triton kernels of Hydra attention, forward and backward: a pass over k and v, one over q.

The norm runs over all H*D features of a token, so that a program holds whole tokens: ``rows`` of
them at a time, ``steps`` times, which makes a chunk. Each kernel sums tokens per chunk; between
the kernels the sums are put together, and a causal chunk starts from the sum of the chunks before
it (in the backward: after it). Shapes: B batch, H heads, T queries, S keys, D head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Form(NamedTuple):
    """The constants that one kernel is compiled for, ``F`` in every function here.

    Attributes:
        features: H * D, padded to ``block``.
        d: features of a head.
        rows: tokens that a program holds at a time.
        causal: whether the sum runs over s <= t alone.
        keep: whether there is a mask.
        gain: whether there is a gain.
    """

    features: int
    block: int
    d: int
    rows: int
    causal: bool
    keep: bool
    gain: bool


@triton.jit
def _where(x, st, b, start, F: tl.constexpr):
    """Addresses of ``rows`` tokens with all features, ``[rows, block]``."""
    i, f = start + tl.arange(0, F.rows), tl.arange(0, F.block)
    at = (f // F.d).to(tl.int64) * st[1] + (f % F.d).to(tl.int64) * st[3]
    return x + tl.cast(b, tl.int64) * st[0] + i.to(tl.int64)[:, None] * st[2] + at[None, :]


@triton.jit
def _inside(start, N, F: tl.constexpr):
    """The entries of such a block that exist."""
    i, f = start + tl.arange(0, F.rows), tl.arange(0, F.block)
    return (i < N)[:, None] & (f < F.features)[None, :]


@triton.jit
def _load(x, st, b, start, N, F: tl.constexpr):
    """A float32 block of tokens; zero outside."""
    at = _where(x, st, b, start, F)
    return tl.load(at, mask=_inside(start, N, F), other=0.0).to(tl.float32)


@triton.jit
def _store(x, st, b, start, N, value, F: tl.constexpr):
    """Writes a block of tokens in the dtype of ``x``."""
    at = _where(x, st, b, start, F)
    tl.store(at, value.to(x.dtype.element_ty), mask=_inside(start, N, F))


@triton.jit
def _unit(x, eps):
    """Every row of ``x`` over its norm, the reciprocal norms, and which norms exceed the floor."""
    square = tl.sum(x * x, axis=1)[:, None]
    r = tl.rsqrt(tl.maximum(square, eps))
    return x * r, r, square >= eps


@triton.jit
def _unit_gradient(grad, unit, r, above):
    """Gradient through ``_unit``."""
    radial = tl.where(above, tl.sum(grad * unit, axis=1)[:, None], 0.0)
    return (grad - unit * radial) * r


@triton.jit
def _keep(keep, st, b, start, N, F: tl.constexpr):
    """1 for the kept ones of ``rows`` tokens, ``[rows, 1]``."""
    i = start + tl.arange(0, F.rows)
    at = keep + tl.cast(b, tl.int64) * st[0] + i.to(tl.int64) * st[3]
    return (tl.load(at, mask=i < N, other=0) != 0).to(tl.float32)[:, None]


@triton.jit
def _products(
    k, v, keep, k_st, v_st, keep_st, b, start, N, eps, F: tl.constexpr, KEEP: tl.constexpr
):
    """``k^ * v`` of ``rows`` tokens, zero where not kept."""
    unit, r, above = _unit(_load(k, k_st, b, start, N, F), eps)
    x = unit * _load(v, v_st, b, start, N, F)
    if KEEP:
        x = tl.where(_keep(keep, keep_st, b, start, N, F) != 0, x, 0.0)
    return x


@triton.jit
def _features(x, b, chunk, st, F: tl.constexpr):
    """The row of sums ``[1, block]`` of a chunk."""
    f = tl.arange(0, F.block)
    at = x + tl.cast(b, tl.int64) * st[0] + tl.cast(chunk, tl.int64) * st[1] + f
    return tl.load(at, mask=f < F.features, other=0.0)[None, :]


@triton.jit
def _put_features(x, b, chunk, chunks, value, F: tl.constexpr):
    """Writes ``value [block]`` to the row of a chunk."""
    f = tl.arange(0, F.block)
    at = x + (tl.cast(b, tl.int64) * chunks + chunk) * F.features + f
    tl.store(at, value, mask=f < F.features)


@triton.jit
def _gain(gain, F: tl.constexpr):
    """The gain per feature ``[1, block]``."""
    f = tl.arange(0, F.block)
    return tl.load(gain + f, mask=f < F.features, other=0.0)[None, :]


@triton.jit
def hydra_sums(
    k, v, keep, sums, k_st, v_st, keep_st, N, steps, eps, F: tl.constexpr, KEEP: tl.constexpr
):
    """``sums [B, chunks, H * D]``: ``k^ * v`` summed over the tokens of a chunk (2209.07484)."""
    b, chunk = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([F.block], dtype=tl.float32)
    for step in tl.range(0, steps):
        start = (chunk * steps + step) * F.rows
        x = _products(k, v, keep, k_st, v_st, keep_st, b, start, N, eps, F, KEEP)
        total += tl.sum(x, axis=0)
    _put_features(sums, b, chunk, tl.num_programs(1), total, F)


@triton.jit
def hydra_apply(
    q,
    k,
    v,
    keep,
    gain,
    before,
    out,
    q_st,
    k_st,
    v_st,
    keep_st,
    before_st,
    out_st,
    T,
    steps,
    eps,
    F: tl.constexpr,
):
    """``out = gain q^ * total``; ``before`` is the total, or the sum before a causal chunk."""
    b, chunk = tl.program_id(0), tl.program_id(1)
    before_chunk = _features(before, b, chunk, before_st, F)
    g = 1.0
    if F.gain:
        g = _gain(gain, F)
    for step in tl.range(0, steps):
        start = (chunk * steps + step) * F.rows
        unit, r, above = _unit(_load(q, q_st, b, start, T, F), eps)
        total = before_chunk
        if F.causal:
            x = _products(k, v, keep, k_st, v_st, keep_st, b, start, T, eps, F, F.keep)
            total = total + tl.cumsum(x, axis=0)
            before_chunk += tl.sum(x, axis=0)[None, :]
        _store(out, out_st, b, start, T, unit * total * g, F)


@triton.jit
def hydra_queries(
    grad,
    q,
    k,
    v,
    keep,
    gain,
    before,
    dq,
    dgain,
    grad_st,
    q_st,
    k_st,
    v_st,
    keep_st,
    before_st,
    dq_st,
    T,
    steps,
    eps,
    F: tl.constexpr,
):
    """dq, and a chunk's share ``[B, chunks, H * D]`` of dgain."""
    b, chunk = tl.program_id(0), tl.program_id(1)
    before_chunk = _features(before, b, chunk, before_st, F)
    g = 1.0
    if F.gain:
        g = _gain(gain, F)
    share = tl.zeros([F.block], dtype=tl.float32)
    for step in tl.range(0, steps):
        start = (chunk * steps + step) * F.rows
        unit, r, above = _unit(_load(q, q_st, b, start, T, F), eps)
        total = before_chunk
        if F.causal:
            x = _products(k, v, keep, k_st, v_st, keep_st, b, start, T, eps, F, F.keep)
            total = total + tl.cumsum(x, axis=0)
            before_chunk += tl.sum(x, axis=0)[None, :]
        d = _load(grad, grad_st, b, start, T, F) * total
        if F.gain:
            share += tl.sum(d * unit, axis=0)
        _store(dq, dq_st, b, start, T, _unit_gradient(d * g, unit, r, above), F)
    if F.gain:
        _put_features(dgain, b, chunk, tl.num_programs(1), share, F)


@triton.jit
def hydra_keys(
    grad,
    q,
    k,
    v,
    keep,
    gain,
    after,
    dk,
    dv,
    grad_st,
    q_st,
    k_st,
    v_st,
    keep_st,
    after_st,
    dk_st,
    dv_st,
    S,
    steps,
    eps,
    F: tl.constexpr,
):
    """Dk and dv; ``after`` is the sum of ``q^ * grad``, or that sum after a causal chunk."""
    b, chunk = tl.program_id(0), tl.program_id(1)
    after_chunk = _features(after, b, chunk, after_st, F)
    g = 1.0
    if F.gain:
        g = _gain(gain, F)
    for step in tl.range(0, steps):
        start = (chunk * steps + steps - 1 - step) * F.rows
        unit, r, above = _unit(_load(k, k_st, b, start, S, F), eps)
        total = after_chunk
        if F.causal:
            x = _products(q, grad, keep, q_st, grad_st, keep_st, b, start, S, eps, F, False)
            total = total + tl.cumsum(x, axis=0, reverse=True)
            after_chunk += tl.sum(x, axis=0)[None, :]
        total = total * g
        if F.keep:
            total = tl.where(_keep(keep, keep_st, b, start, S, F) != 0, total, 0.0)
        _store(dv, dv_st, b, start, S, total * unit, F)
        d = total * _load(v, v_st, b, start, S, F)
        _store(dk, dk_st, b, start, S, _unit_gradient(d, unit, r, above), F)
