"""The Triton kernels of the pointwise family's backward, which recompute the weights.

One program owns a sum, or a few programs leave a part each: no atomics, the same bits in every
run. Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnpass.kernels.gpu.pointwise_triton import (
    _block,
    _dot,
    _head,
    _limit,
    _logits,
    _next,
    _part,
    _scale,
    _seen,
    _store,
    _term,
    _visible,
    activation,
)


@triton.jit
def slope(x, p, F: tl.constexpr):
    """``h'`` at the logit ``x / F.unit``, where ``p`` is h."""
    if F.h == "sigmoid" or F.h == "sigmoid_tanh":
        y = p - p * p
    elif F.h == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    elif F.h == "relu2":
        y = 2.0 * tl.maximum(x, 0.0)
    elif F.h == "gelu":
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        y += x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif F.h == "softplus":
        y = 1.0 / (1.0 + tl.exp(-x))
    elif F.h == "relu6":
        y = tl.where((x > 0) & (x < 6), 1.0, 0.0)
    else:
        y = tl.full(x.shape, 1.0, tl.float32)
    return y


@triton.jit
def _seen_by(first, last, N, window, F: tl.constexpr):
    """The queries that see the keys ``first`` to ``last``, in the parts of ``_visible``."""
    lo, full, edge, hi = 0, 0, N, N
    if F.causal:
        lo, full = first, last
    elif F.windowed:
        lo, full = tl.maximum(0, first - window + 1), tl.maximum(0, last - window + 1)
    if F.windowed:
        edge, hi = tl.minimum(N, first + window), tl.minimum(N, last + window)
    lo, full = lo // F.m * F.m, (full + F.m - 1) // F.m * F.m
    edge = tl.maximum(edge // F.m * F.m, full)
    return lo, tl.minimum(full, hi), full, edge, hi


@triton.jit
def _through(x, p, dp, row_gain, F: tl.constexpr):
    """The gradient of the logits ``x / F.unit`` for that of the weights ``p``, in float32."""
    if F.h == "softmax":
        return p * (dp - row_gain)
    else:
        return slope(x, p, F) * dp * row_gain


@triton.jit
def _gradients(x, dp, kept, row_offset, row_gain, CHECK: tl.constexpr, F: tl.constexpr):
    """Weights p, their gradient and that of the logits; 0 where not kept.

    CHECK: whether some positions of the block may not be kept. Of softmax, ``row_offset`` is minus
    the log-sum-exp of the rows, ``row_gain`` what their weights times their gradients sum up to.
    """
    x += row_offset
    if CHECK or (F.bias or F.keep):
        x, dp = tl.where(kept, x, 0.0), tl.where(kept, dp, 0.0)
        p = activation(x, F)
        ds = tl.where(kept, _through(x, p, dp, row_gain, F), 0.0)
        p = tl.where(kept, p, 0.0)
    else:
        p = activation(x, F)
        ds = _through(x, p, dp, row_gain, F)
    return p, dp, ds


@triton.jit
def pointwise_queries(
    grad,
    q,
    k,
    v,
    bias,
    keep,
    tau,
    offset,
    gain,
    slopes,
    lengths,
    k_desc,
    v_desc,
    dq,
    dtau,
    doffset,
    dgain,
    grad_st,
    q_st,
    k_st,
    v_st,
    bias_st,
    keep_st,
    offset_st,
    gain_st,
    dq_st,
    T,
    S,
    HEADS,
    GROUP,
    scale,
    window,
    F: tl.constexpr,
):
    """The gradients that a block of query rows owns.

    These are dq, doffset and dgain ``[B, H, T]``, and a share ``[B, H, blocks]`` of tau * dtau;
    of softmax dq alone.
    """
    terms: tl.constexpr = F.h != "softmax"
    blocks = tl.cdiv(T, F.m)
    tile = tl.program_id(0)
    first = (blocks - 1 - tile % blocks) * F.m
    head, b = tile // blocks % HEADS, tile // blocks // HEADS
    g = head // GROUP
    i = first + tl.arange(0, F.m)
    t = i[:, None]
    q_block = _block(_head(q, q_st, b, head), q_st, first, T, F.d, F.m, F.block_d, True, F)
    g_block = _block(
        _head(grad, grad_st, b, head), grad_st, first, T, F.dv, F.m, F.block_dv, True, F
    )
    by = _scale(tau, slopes, head, scale, F)
    row_offset, row_gain = 0.0, 1.0
    if F.offset:
        row_offset = _term(offset, offset_st, b, head, first, T, F.offset, F.m, 0) * F.unit
    if F.gain:
        row_gain = _term(gain, gain_st, b, head, first, T, F.gain, F.m, 0)
    limit = _limit(lengths, b, S, F)
    parts = _visible(first, tl.minimum(first + F.m, T) - 1, limit, window, F)
    k_at, v_at = _head(k, k_st, b, g), _head(v, v_st, b, g)
    bias_at, keep_at = bias, keep
    if F.bias:
        bias_at = _head(bias, bias_st, b, head)
    if F.keep:
        keep_at = _head(keep, keep_st, b, head)
    total = tl.zeros([F.m, F.block_d], dtype=tl.float32)
    sum_ds = tl.zeros([F.m], dtype=tl.float32)
    sum_p = tl.zeros([F.m], dtype=tl.float32)
    sum_x = tl.zeros([F.m], dtype=tl.float32)
    for which in tl.static_range(3):
        lo, hi = _part(which, parts)
        if which > 0 or F.windowed:
            for start in tl.range(lo, hi, F.n):
                k_block = _next(
                    k_at, k_desc, k_st, b, g, start, S, F.d, F.n, F.block_d, which != 1, F
                )
                v_block = _next(
                    v_at, v_desc, v_st, b, g, start, S, F.dv, F.n, F.block_dv, which != 1, F
                )
                s = (start + tl.arange(0, F.n))[None, :]
                product = _dot(q_block, tl.trans(k_block), None, F)  # [M, N]
                dp = _dot(g_block, tl.trans(v_block), None, F)  # [M, N]
                x, kept = _logits(
                    product, t, s, by, bias_at, bias_st, keep_at, keep_st, T, limit, window, F
                )
                p, dp, ds = _gradients(x, dp, kept, row_offset, row_gain, which != 1, F)
                if terms and F.offset:
                    sum_ds += tl.sum(ds, axis=1)
                if terms and F.gain:
                    sum_p += tl.sum(p * dp, axis=1)
                if F.tau:
                    sum_x += tl.sum(ds * x, axis=1)
                k_block = _seen(k_block, start, limit, which != 1, F)
                total = _dot(ds.to(k_block.dtype), k_block, total, F)
    at = _head(dq, dq_st, b, head)
    by_scale, added, far = by
    _store(at, dq_st, first, T, F.d, F.block_d, F.m, total * (by_scale / F.unit))
    rows = tl.cast(b * HEADS + head, tl.int64) * T + i
    if terms and F.offset:
        tl.store(doffset + rows, sum_ds, mask=i < T)
    if terms and F.gain:
        tl.store(dgain + rows, sum_p, mask=i < T)
    if F.tau:
        # x is unit times tau times the raw logit
        tl.store(dtau + tile, tl.sum(sum_x, axis=0) / F.unit)


@triton.jit
def pointwise_keys(
    grad,
    q,
    k,
    v,
    bias,
    keep,
    tau,
    offset,
    gain,
    slopes,
    lengths,
    q_desc,
    g_desc,
    dk,
    dv,
    grad_st,
    q_st,
    k_st,
    v_st,
    bias_st,
    keep_st,
    offset_st,
    gain_st,
    dk_st,
    dv_st,
    T,
    S,
    GROUPS,
    GROUP,
    scale,
    window,
    F: tl.constexpr,
):
    """Gradients of a block of keys and values of one group: all its heads in turn."""
    blocks = tl.cdiv(S, F.n)
    tile = tl.program_id(0)
    first = tile % blocks * F.n
    g, b = tile // blocks % GROUPS, tile // blocks // GROUPS
    i = first + tl.arange(0, F.n)
    s = i[:, None]
    k_block = _block(_head(k, k_st, b, g), k_st, first, S, F.d, F.n, F.block_d, True, F)
    v_block = _block(_head(v, v_st, b, g), v_st, first, S, F.dv, F.n, F.block_dv, True, F)
    limit = _limit(lengths, b, S, F)
    parts = _seen_by(first, tl.minimum(first + F.n, limit) - 1, T, window, F)
    k_total = tl.zeros([F.n, F.block_d], dtype=tl.float32)
    v_total = tl.zeros([F.n, F.block_dv], dtype=tl.float32)
    if first < limit:
        for head in tl.range(g * GROUP, (g + 1) * GROUP):
            by = _scale(tau, slopes, head, scale, F)
            q_at, g_at = _head(q, q_st, b, head), _head(grad, grad_st, b, head)
            bias_at, keep_at = bias, keep
            if F.bias:
                bias_at = _head(bias, bias_st, b, head)
            if F.keep:
                keep_at = _head(keep, keep_st, b, head)
            for which in tl.static_range(3):
                lo, hi = _part(which, parts)
                if which != 0 or (F.causal or F.windowed):
                    for start in tl.range(lo, hi, F.m):
                        q_block = _next(
                            q_at,
                            q_desc,
                            q_st,
                            b,
                            head,
                            start,
                            T,
                            F.d,
                            F.m,
                            F.block_d,
                            which != 1,
                            F,
                        )
                        g_block = _next(
                            g_at,
                            g_desc,
                            grad_st,
                            b,
                            head,
                            start,
                            T,
                            F.dv,
                            F.m,
                            F.block_dv,
                            which != 1,
                            F,
                        )
                        t = (start + tl.arange(0, F.m))[None, :]
                        row_offset, row_gain = 0.0, 1.0
                        if F.offset:
                            row_offset = _term(
                                offset, offset_st, b, head, start, T, F.offset, F.m, 1
                            )
                            row_offset *= F.unit
                        if F.gain:
                            row_gain = _term(gain, gain_st, b, head, start, T, F.gain, F.m, 1)
                        product = _dot(k_block, tl.trans(q_block), None, F)  # [N, M]
                        dp = _dot(v_block, tl.trans(g_block), None, F)  # [N, M]
                        x, kept = _logits(
                            product,
                            t,
                            s,
                            by,
                            bias_at,
                            bias_st,
                            keep_at,
                            keep_st,
                            T,
                            limit,
                            window,
                            F,
                        )
                        check: tl.constexpr = which != 1 or F.lengths
                        p, dp, ds = _gradients(x, dp, kept, row_offset, row_gain, check, F)
                        if F.h != "softmax":
                            p *= row_gain
                        v_total = _dot(p.to(g_block.dtype), g_block, v_total, F)
                        ds = (ds * (by[0] / F.unit)).to(q_block.dtype)
                        k_total = _dot(ds, q_block, k_total, F)
    _store(_head(dk, dk_st, b, g), dk_st, first, S, F.d, F.block_d, F.n, k_total)
    _store(_head(dv, dv_st, b, g), dv_st, first, S, F.dv, F.block_dv, F.n, v_total)


@triton.jit
def pointwise_bias(
    grad,
    q,
    k,
    v,
    bias,
    keep,
    tau,
    offset,
    gain,
    slopes,
    lengths,
    dbias,
    grad_st,
    q_st,
    k_st,
    v_st,
    bias_st,
    keep_st,
    offset_st,
    gain_st,
    T,
    S,
    GROUP,
    ITEMS,
    HEADS,
    t_blocks,
    s_blocks,
    ROWS,
    COLUMNS,
    OWN_HEADS,
    scale,
    window,
    ONE_ROW: tl.constexpr,
    ONE_COLUMN: tl.constexpr,
    F: tl.constexpr,
):
    """One block of dbias ``[.., OWN_HEADS, ROWS, COLUMNS]``, summed over all scores that share it.

    ITEMS batch items, HEADS heads and ``t_blocks x s_blocks`` blocks of scores share the block;
    each number is 1 where the bias has entries of its own. The programs of the second axis take
    turns at the shared scores and leave a sum each: ``[programs, .., OWN_HEADS, ROWS, COLUMNS]``.
    """
    rows, columns = tl.cdiv(ROWS, F.m), tl.cdiv(COLUMNS, F.n)
    tile = tl.program_id(0)
    column, row = tile % columns, tile // columns % rows
    own = tile // columns // rows
    total = tl.zeros([F.m, F.n], dtype=tl.float32)
    shares = ITEMS * HEADS * t_blocks * s_blocks
    for share in tl.range(tl.program_id(1), shares, tl.num_programs(1)):
        s_block, t_block = share % s_blocks, share // s_blocks % t_blocks
        pair = share // s_blocks // t_blocks
        b, head = own // OWN_HEADS + pair // HEADS, own % OWN_HEADS + pair % HEADS
        first, start = (row + t_block) * F.m, (column + s_block) * F.n
        limit = _limit(lengths, b, S, F)
        t, s = (first + tl.arange(0, F.m))[:, None], (start + tl.arange(0, F.n))[None, :]
        q_block = _block(_head(q, q_st, b, head), q_st, first, T, F.d, F.m, F.block_d, True, F)
        g_block = _block(
            _head(grad, grad_st, b, head), grad_st, first, T, F.dv, F.m, F.block_dv, True, F
        )
        g = head // GROUP
        k_block = _block(_head(k, k_st, b, g), k_st, start, S, F.d, F.n, F.block_d, True, F)
        v_block = _block(_head(v, v_st, b, g), v_st, start, S, F.dv, F.n, F.block_dv, True, F)
        by = _scale(tau, slopes, head, scale, F)
        row_offset, row_gain = 0.0, 1.0
        if F.offset:
            row_offset = _term(offset, offset_st, b, head, first, T, F.offset, F.m, 0) * F.unit
        if F.gain:
            row_gain = _term(gain, gain_st, b, head, first, T, F.gain, F.m, 0)
        keep_at = keep
        if F.keep:
            keep_at = _head(keep, keep_st, b, head)
        product = _dot(q_block, tl.trans(k_block), None, F)  # [M, N]
        dp = _dot(g_block, tl.trans(v_block), None, F)  # [M, N]
        x, kept = _logits(
            product,
            t,
            s,
            by,
            _head(bias, bias_st, b, head),
            bias_st,
            keep_at,
            keep_st,
            T,
            limit,
            window,
            F,
        )
        p, dp, ds = _gradients(x, dp, kept, row_offset, row_gain, True, F)
        total += ds * (by[1] / F.unit)
    i, j = row * F.m + tl.arange(0, F.m), column * F.n + tl.arange(0, F.n)
    each = tl.num_programs(0) // (rows * columns)
    at = dbias + tl.cast(tl.program_id(1) * each + own, tl.int64) * ROWS * COLUMNS
    if ONE_ROW and ONE_COLUMN:
        tl.store(at, tl.sum(tl.sum(total, axis=1), axis=0))
    elif ONE_ROW:
        tl.store(at + j, tl.sum(total, axis=0), mask=j < COLUMNS)
    elif ONE_COLUMN:
        tl.store(at + i, tl.sum(total, axis=1), mask=i < ROWS)
    else:
        where = at + i.to(tl.int64)[:, None] * COLUMNS + j[None, :]
        tl.store(where, total, mask=(i < ROWS)[:, None] & (j < COLUMNS)[None, :])
