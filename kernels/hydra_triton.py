"""Triton forward of Hydra attention: one pass over k and v, one over q; causal by chunked scan.

Shapes: B batch, H heads, T queries, S keys, D head dim; a program holds all H*D features of a
block of rows, because the norm is over all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(x, b, rows, feature, x_b, x_h, x_t, x_d, N, FEATURES, D: tl.constexpr):
    """A float32 block ``[M, F]`` of rows with all heads' features; zero outside."""
    ok = (rows < N)[:, None] & (feature < FEATURES)[None, :]
    at = (feature // D).to(tl.int64) * x_h + (feature % D) * x_d
    where = x + b * x_b + rows.to(tl.int64)[:, None] * x_t + at[None, :]
    return tl.load(where, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def _unit(x, eps):
    """Every row of ``x [M, F]`` over its norm."""
    return x * tl.rsqrt(tl.maximum(tl.sum(x * x, axis=1), eps))[:, None]


@triton.jit
def hydra_partial(
    k,
    v,
    keep,
    partial,
    k_b,
    k_h,
    k_s,
    k_d,
    v_b,
    v_h,
    v_s,
    v_d,
    keep_b,
    keep_s,
    S,
    CHUNKS,
    FEATURES,
    eps,
    D: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """``partial[b, chunk, f]``: the sum of ``k^ * v`` over one chunk of keys (2209.07484)."""
    chunk = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    rows = chunk * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tl.arange(0, BLOCK_F)
    unit = _unit(_rows(k, b, rows, feature, k_b, k_h, k_s, k_d, S, FEATURES, D), eps)
    product = unit * _rows(v, b, rows, feature, v_b, v_h, v_s, v_d, S, FEATURES, D)
    if HAS_KEEP:
        flag = tl.load(keep + b * keep_b + rows.to(tl.int64) * keep_s, mask=rows < S, other=0)
        product = tl.where((flag != 0)[:, None], product, 0.0)
    tl.store(
        partial + (b * CHUNKS + chunk) * FEATURES + feature,
        tl.sum(product, axis=0),
        mask=feature < FEATURES,
    )


@triton.jit
def hydra_apply(
    q,
    k,
    v,
    keep,
    before,
    out,
    q_b,
    q_h,
    q_t,
    q_d,
    k_b,
    k_h,
    k_s,
    k_d,
    v_b,
    v_h,
    v_s,
    v_d,
    keep_b,
    keep_s,
    out_b,
    out_h,
    out_t,
    T,
    CHUNKS,
    FEATURES,
    eps,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """``out = q^ * total``; ``before[b, chunk, f]`` is the total, or what precedes the chunk."""
    chunk = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    rows = chunk * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tl.arange(0, BLOCK_F)
    unit = _unit(_rows(q, b, rows, feature, q_b, q_h, q_t, q_d, T, FEATURES, D), eps)
    at = before + (b * CHUNKS + chunk) * FEATURES + feature
    total = tl.load(at, mask=feature < FEATURES, other=0.0)[None, :]
    if CAUSAL:
        product = _unit(_rows(k, b, rows, feature, k_b, k_h, k_s, k_d, T, FEATURES, D), eps)
        product *= _rows(v, b, rows, feature, v_b, v_h, v_s, v_d, T, FEATURES, D)
        if HAS_KEEP:
            flag = tl.load(keep + b * keep_b + rows.to(tl.int64) * keep_s, mask=rows < T, other=0)
            product = tl.where((flag != 0)[:, None], product, 0.0)
        total = total + tl.cumsum(product, axis=0)
    where = out + b * out_b + (feature // D).to(tl.int64)[None, :] * out_h
    where += rows.to(tl.int64)[:, None] * out_t + (feature % D)[None, :]
    ok = (rows < T)[:, None] & (feature < FEATURES)[None, :]
    tl.store(where, (unit * total).to(out.dtype.element_ty), mask=ok)
