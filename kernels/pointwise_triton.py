"""Triton forward of the pointwise family: one program per block of query rows and head.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, DV value dim.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activation(s, H: tl.constexpr):
    """``h(s)`` in float32; sigmoid in its accurate exp2 form."""
    if H == "sigmoid":
        p = 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * s))
    elif H == "relu":
        p = tl.maximum(s, 0.0)
    elif H == "relu2":
        r = tl.maximum(s, 0.0)
        p = r * r
    elif H == "gelu":
        p = 0.5 * s * (1.0 + tl.erf(s * 0.7071067811865476))
    elif H == "softplus":
        # log(1 + e^s) without overflow
        p = tl.maximum(s, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(s)))
    elif H == "relu6":
        p = tl.minimum(tl.maximum(s, 0.0), 6.0)
    else:
        p = s
    return p


@triton.jit
def pointwise_forward(
    q,
    k,
    v,
    bias,
    keep,
    tau,
    offset,
    gain,
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
    bias_b,
    bias_h,
    bias_t,
    bias_s,
    keep_b,
    keep_h,
    keep_t,
    keep_s,
    off_b,
    off_h,
    off_t,
    gain_b,
    gain_h,
    gain_t,
    out_b,
    out_h,
    out_t,
    T,
    S,
    HEADS,
    GROUP,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    H: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_TAU: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``out[b, h, t] = gain sum_s keep h(tau (scale q.k + bias) + offset) v`` (2409.04431)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    b = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    row_ok = rows < T
    t = rows.to(tl.int64)[:, None]
    q_block = tl.load(
        q + b * q_b + head * q_h + t * q_t + d[None, :] * q_d,
        mask=row_ok[:, None] & (d < D)[None, :],
        other=0.0,
    )  # [M, D]
    total = tl.zeros([BLOCK_M, BLOCK_DV], dtype=tl.float32)
    row_offset = tl.zeros([BLOCK_M], dtype=tl.float32)
    if HAS_OFFSET:
        row_offset = tl.load(
            offset + b * off_b + head * off_h + rows.to(tl.int64) * off_t, mask=row_ok, other=0.0
        )
    temperature = 1.0
    if HAS_TAU:
        temperature = tl.load(tau + head)
    stop = S
    if CAUSAL:
        stop = tl.minimum(S, (tl.program_id(0) + 1) * BLOCK_M)
    for start in range(0, stop, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)  # [N]
        column_ok = columns < S
        s = columns.to(tl.int64)
        k_block = tl.load(
            k + b * k_b + (head // GROUP) * k_h + s[None, :] * k_s + d[:, None] * k_d,
            mask=column_ok[None, :] & (d < D)[:, None],
            other=0.0,
        )  # [D, N]
        logits = tl.dot(q_block, k_block, input_precision=PRECISION) * scale  # [M, N]
        ok = row_ok[:, None] & column_ok[None, :]
        kept = ok
        if HAS_BIAS:
            added = tl.load(
                bias + b * bias_b + head * bias_h + t * bias_t + s[None, :] * bias_s,
                mask=ok,
                other=0.0,
            ).to(tl.float32)
            kept = kept & (added != float("-inf"))
            logits += tl.where(kept, added, 0.0)
        if HAS_KEEP:
            flag = tl.load(
                keep + b * keep_b + head * keep_h + t * keep_t + s[None, :] * keep_s,
                mask=ok,
                other=0,
            )
            kept = kept & (flag != 0)
        if CAUSAL:
            kept = kept & (columns[None, :] <= rows[:, None])
        p = activation(logits * temperature + row_offset[:, None], H)
        p = tl.where(kept, p, 0.0)
        v_block = tl.load(
            v + b * v_b + (head // GROUP) * v_h + s[:, None] * v_s + dv[None, :] * v_d,
            mask=column_ok[:, None] & (dv < DV)[None, :],
            other=0.0,
        )  # [N, DV]
        total += tl.dot(p.to(v_block.dtype), v_block, input_precision=PRECISION)
    if HAS_GAIN:
        row_gain = tl.load(
            gain + b * gain_b + head * gain_h + rows.to(tl.int64) * gain_t, mask=row_ok, other=0.0
        )
        total *= row_gain[:, None]
    tl.store(
        out + b * out_b + head * out_h + t * out_t + dv[None, :],
        total.to(out.dtype.element_ty),
        mask=row_ok[:, None] & (dv < DV)[None, :],
    )
