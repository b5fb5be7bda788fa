"""The Triton kernel of the pointwise family's forward, and functions that the backward shares.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, DV value dim.
Every block of scores is recomputed where it is needed and every sum is owned by one program:
no atomics, the same bits in every run. Addresses are 64-bit scalars plus offsets within a block.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Form(NamedTuple):
    """The constants that one kernel is compiled for, ``F`` in every function here.

    Attributes:
        h: the pointwise function, or ``softmax``.
        unit: the factor on the logit that the code of h takes.
        causal: whether only the keys s <= t are kept.
        windowed: whether the call has a window.
        bias: whether the call has a bias; likewise keep, tau, slopes and lengths.
        offset: 0 without one, 1 with one value per head, 2 with one value per row.
        gain: likewise.
        d: head dim, padded to ``block_d``.
        dv: value dim, padded to ``block_dv``.
        precision: of float32 products, ``ieee`` or ``tf32``.
        big: whether offsets within a block pass 2^31.
        device: whether an NVIDIA GPU from sm80 on runs the kernel; the interpreter widens bfloat16
            and has no assembly.
        m: rows of a block.
        n: columns of a block.
        warps: warps of a program.
        descriptors: whether the blocks of a loop come by the tensor memory accelerator.
        persistent: whether a program takes every num_programs-th tile instead of one.
        split: whether the programs of the second axis share the keys of a tile.
    """

    h: str
    unit: float
    causal: bool
    windowed: bool
    bias: bool
    keep: bool
    tau: bool
    offset: int
    gain: int
    slopes: bool
    lengths: bool
    d: int
    dv: int
    block_d: int
    block_dv: int
    precision: str
    big: bool
    device: bool
    m: int
    n: int
    warps: int
    descriptors: bool
    persistent: bool
    split: bool = False


# Two sigmoids of x = -log2(e) * logit by three special functions instead of four: 1/a and 1/b are
# b/(ab) and a/(ab). A weight below 2^-62 is computed as 2^-62. ``min.NaN`` lets a NaN pass into
# both results: logits that are not kept must be set to a number before.
_SIGMOID = tl.constexpr(
    """{
    .reg .f32 a, b, r;
    min.NaN.f32 a, $2, 0f42780000;
    min.NaN.f32 b, $3, 0f42780000;
    ex2.approx.ftz.f32 a, a;
    ex2.approx.ftz.f32 b, b;
    add.f32 a, a, 0f3F800000;
    add.f32 b, b, 0f3F800000;
    mul.f32 r, a, b;
    rcp.approx.ftz.f32 r, r;
    mul.f32 $0, r, b;
    mul.f32 $1, r, a;
    }"""
)


@triton.jit
def activation(x, F: tl.constexpr):
    """``h`` of the logit ``x / F.unit``, in float32."""
    if F.h == "sigmoid":
        # the assembly takes two weights of one thread
        if F.device and F.m * F.n >= 64 * F.warps:
            p = tl.inline_asm_elementwise(
                _SIGMOID, "=f,=f,f,f", [x], dtype=tl.float32, is_pure=True, pack=2
            )
        else:
            p = 1.0 / (1.0 + tl.exp2(x))
    elif F.h == "sigmoid_tanh":
        if F.device:
            y = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            y = 2.0 / (1.0 + tl.exp2(-2.8853900817779268 * x)) - 1.0
        p = 0.5 * y + 0.5
    elif F.h == "relu":
        p = tl.maximum(x, 0.0)
    elif F.h == "relu2":
        r = tl.maximum(x, 0.0)
        p = r * r
    elif F.h == "gelu":
        p = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif F.h == "softplus":
        # log(1 + e^x) without overflow
        p = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    elif F.h == "relu6":
        p = tl.minimum(tl.maximum(x, 0.0), 6.0)
    elif F.h == "softmax":
        p = tl.exp2(x)
    else:
        p = x
    return p


@triton.jit
def _dot(a, b, c, F: tl.constexpr):
    """``a @ b + c`` in float32."""
    if not F.device:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision=F.precision)


@triton.jit
def _head(x, st, b, head):
    """The address of head ``head`` of item ``b``."""
    return x + tl.cast(b, tl.int64) * st[0] + tl.cast(head, tl.int64) * st[1]


@triton.jit
def _block(
    x,
    st,
    start,
    N,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK: tl.constexpr,
    F: tl.constexpr,
):
    """Rows ``[start, start + BLOCK)`` of a head at ``x``, ``[BLOCK, BLOCK_D]``; zero outside.

    CHECK: whether the block may hold rows from N on.
    """
    i, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    inside = (start + i < N)[:, None]
    if F.big:
        i, d = i.to(tl.int64), d.to(tl.int64)
    at = x + tl.cast(start, tl.int64) * st[2] + (i[:, None] * st[2] + d[None, :] * st[3])
    if CHECK:
        return tl.load(at, mask=inside & (d < D)[None, :], other=0.0)
    elif D == BLOCK_D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(d < D)[None, :], other=0.0)


@triton.jit
def _next(
    x,
    desc,
    st,
    b,
    head,
    start,
    N,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECK: tl.constexpr,
    F: tl.constexpr,
):
    """``_block`` of a loop, by its descriptor if there is one."""
    if F.descriptors:
        return desc.load([b, head, start, 0]).reshape([BLOCK, BLOCK_D])
    else:
        return _block(x, st, start, N, D, BLOCK, BLOCK_D, CHECK, F)


@triton.jit
def _vector(x, start, step, N, BLOCK: tl.constexpr):
    """Entries ``[start, start + BLOCK)`` of a vector with a stride; zero from N on."""
    i = start + tl.arange(0, BLOCK)
    return tl.load(x + i.to(tl.int64) * step, mask=i < N, other=0.0)


@triton.jit
def _term(
    x,
    st,
    b,
    head,
    start,
    N,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    AXIS: tl.constexpr,
):
    """A value of the head, or of its rows ``[start, start + BLOCK)`` along ``AXIS`` of two."""
    at = _head(x, st, b, head)
    if KIND == 1:
        return tl.load(at)
    elif AXIS == 0:
        return _vector(at, start, st[2], N, BLOCK)[:, None]
    else:
        return _vector(at, start, st[2], N, BLOCK)[None, :]


@triton.jit
def _seen(x, start, limit, CHECK: tl.constexpr, F: tl.constexpr):
    """Rows of keys or values with zeros from ``limit`` on, where memory may hold anything."""
    if CHECK and F.lengths:
        i = start + tl.arange(0, F.n)
        x = tl.where((i < limit)[:, None], x, 0.0)
    return x


@triton.jit
def _store(x, st, start, N, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, value):
    """Writes ``value [BLOCK, BLOCK_D]`` to rows ``[start, start + BLOCK)`` of a head at ``x``."""
    i, d = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    at = x + i.to(tl.int64)[:, None] * st[2] + d[None, :] * st[3]
    tl.store(at, value.to(x.dtype.element_ty), mask=(i < N)[:, None] & (d < D)[None, :])


@triton.jit
def _scale(tau, slopes, head, scale, F: tl.constexpr):
    """The factors of a head's products, biases and distances in ``unit`` times the logits."""
    added = F.unit
    if F.tau:
        added = tl.load(tau + head) * F.unit
    far = 0.0
    if F.slopes:
        far = tl.load(slopes + head) * added
    return scale * added, added, far


@triton.jit
def _limit(lengths, b, S, F: tl.constexpr):
    """The number of keys of item b."""
    if F.lengths:
        return tl.minimum(S, tl.load(lengths + b))
    else:
        return S


@triton.jit
def _logits(x, t, s, by, bias, bias_st, keep, keep_st, T, limit, window, F: tl.constexpr):
    """``unit`` times the logits without the offset, and the kept positions.

    ``x`` are the products of queries ``t`` and keys ``s``, which broadcast to its shape; ``bias``
    and ``keep`` are those of the head.
    """
    scale, added, far = by
    x = x * scale
    inside = (s < limit) & (t < T)
    kept = inside
    if F.causal:
        kept = kept & (s <= t)
    if F.windowed:
        kept = kept & (t - s < window)
        if not F.causal:
            kept = kept & (s - t < window)
    if F.slopes:
        x -= far * tl.abs(t - s).to(tl.float32)
    if F.bias:
        at = bias + t.to(tl.int64) * bias_st[2] + s.to(tl.int64) * bias_st[3]
        more = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        finite = more != float("-inf")
        kept = kept & finite
        x += tl.where(finite, more, 0.0) * added
    if F.keep:
        at = keep + t.to(tl.int64) * keep_st[2] + s.to(tl.int64) * keep_st[3]
        kept = kept & (tl.load(at, mask=inside, other=0) != 0)
    return x, kept


@triton.jit
def _visible(first, last, N, window, F: tl.constexpr):
    """The keys that the queries ``first`` to ``last`` see: ``(lo, stop, full, edge, hi)``.

    Some of these queries see the keys ``[lo, stop)`` and ``[edge, hi)``, all see ``[full, edge)``;
    lo, full and edge are multiples of a block.
    """
    lo, full, edge, hi = 0, 0, N, N
    if F.causal:
        edge, hi = tl.minimum(N, first + 1), tl.minimum(N, last + 1)
    elif F.windowed:
        edge, hi = tl.minimum(N, first + window), tl.minimum(N, last + window)
    if F.windowed:
        lo, full = tl.maximum(0, first - window + 1), tl.maximum(0, last - window + 1)
    lo, full = lo // F.n * F.n, (full + F.n - 1) // F.n * F.n
    edge = tl.maximum(edge // F.n * F.n, full)
    return lo, tl.minimum(full, hi), full, edge, hi


@triton.jit
def _part(which: tl.constexpr, parts):
    """Where the first, second or third part of ``_visible`` begins and ends."""
    lo, stop, full, edge, hi = parts
    if which == 0:
        return lo, stop
    elif which == 1:
        return full, edge
    else:
        return edge, hi


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
    slopes,
    lengths,
    k_desc,
    v_desc,
    out,
    lse,
    q_st,
    k_st,
    v_st,
    bias_st,
    keep_st,
    offset_st,
    gain_st,
    out_st,
    T,
    S,
    HEADS,
    GROUP,
    scale,
    window,
    tiles,
    chunk,
    out_step,
    lse_step,
    F: tl.constexpr,
):
    """``out[b, h, t] = gain sum_s keep h(tau (scale q.k + bias) + offset) v`` (2409.04431).

    A tile is a block of query rows of one head. Of softmax the rows are rescaled while their
    maximum grows (1805.02867), and ``lse [B, H, T]`` gets their log-sum-exp. Split, program i of
    the second axis takes the i-th ``chunk`` keys, a multiple of a block, and writes results of its
    own ``i * out_step`` and ``i * lse_step`` entries on.
    """
    if F.split:
        out += tl.cast(tl.program_id(1), tl.int64) * out_step
        if F.h == "softmax":
            lse += tl.cast(tl.program_id(1), tl.int64) * lse_step
    blocks = tl.cdiv(T, F.m)
    begin = tl.program_id(0)
    end, step = begin + 1, 1
    if F.persistent:
        end, step = tiles, tl.num_programs(0)
    for tile in tl.range(begin, end, step):
        # the long rows of a causal head first
        first = (blocks - 1 - tile % blocks) * F.m
        head, b = tile // blocks % HEADS, tile // blocks // HEADS
        g = head // GROUP
        t = (first + tl.arange(0, F.m))[:, None]
        q_block = _block(_head(q, q_st, b, head), q_st, first, T, F.d, F.m, F.block_d, True, F)
        by = _scale(tau, slopes, head, scale, F)
        row_offset = 0.0
        if F.offset:
            row_offset = _term(offset, offset_st, b, head, first, T, F.offset, F.m, 0) * F.unit
        limit = _limit(lengths, b, S, F)
        parts = _visible(first, tl.minimum(first + F.m, T) - 1, limit, window, F)
        k_at, v_at = _head(k, k_st, b, g), _head(v, v_st, b, g)
        bias_at, keep_at = bias, keep
        if F.bias:
            bias_at = _head(bias, bias_st, b, head)
        if F.keep:
            keep_at = _head(keep, keep_st, b, head)
        total = tl.zeros([F.m, F.block_dv], dtype=tl.float32)
        if F.h == "softmax":
            top = tl.full([F.m], float("-inf"), dtype=tl.float32)
            sums = tl.zeros([F.m], dtype=tl.float32)
        for which in tl.static_range(3):
            lo, hi = _part(which, parts)
            if F.split:
                mine = tl.program_id(1) * chunk
                lo, hi = tl.maximum(lo, mine), tl.minimum(hi, mine + chunk)
            # only a window hides the first keys
            if which > 0 or F.windowed:
                for start in tl.range(lo, hi, F.n):
                    k_block = _next(
                        k_at, k_desc, k_st, b, g, start, S, F.d, F.n, F.block_d, which != 1, F
                    )
                    s = (start + tl.arange(0, F.n))[None, :]
                    product = _dot(q_block, tl.trans(k_block), None, F)  # [M, N]
                    x, kept = _logits(
                        product, t, s, by, bias_at, bias_st, keep_at, keep_st, T, limit, window, F
                    )
                    x += row_offset
                    if F.h == "softmax":
                        if which != 1 or (F.bias or F.keep):
                            x = tl.where(kept, x, float("-inf"))
                        most = tl.maximum(top, tl.max(x, 1))
                        # a row without a kept key yet: its weights are 0, not NaN
                        base = tl.where(most == float("-inf"), 0.0, most)
                        p = activation(x - base[:, None], F)
                        shrink = tl.exp2(top - base)
                        sums = sums * shrink + tl.sum(p, 1)
                        total *= shrink[:, None]
                        top = most
                    elif which != 1 or (F.bias or F.keep):
                        p = tl.where(kept, activation(tl.where(kept, x, 0.0), F), 0.0)
                    else:
                        p = activation(x, F)
                    v_block = _next(
                        v_at, v_desc, v_st, b, g, start, S, F.dv, F.n, F.block_dv, which != 1, F
                    )
                    v_block = _seen(v_block, start, limit, which != 1, F)
                    total = _dot(p.to(v_block.dtype), v_block, total, F)
        if F.h == "softmax":
            none = sums == 0.0
            sums = tl.where(none, 1.0, sums)
            total *= tl.where(none, 0.0, 1.0 / sums)[:, None]
            rows = first + tl.arange(0, F.m)
            at = lse + tl.cast(b * HEADS + head, tl.int64) * T + rows
            found = tl.where(none, float("-inf"), (top + tl.log2(sums)) / F.unit)
            tl.store(at, found, mask=rows < T)
        elif F.gain:
            total *= _term(gain, gain_st, b, head, first, T, F.gain, F.m, 0)
        _store(_head(out, out_st, b, head), out_st, first, T, F.dv, F.block_dv, F.m, total)


@triton.jit
def joined(
    parts,
    parts_lse,
    out,
    lse,
    out_st,
    T,
    HEADS,
    splits,
    out_step,
    lse_step,
    BLOCK: tl.constexpr,
    F: tl.constexpr,
):
    """One row of a split call: the sum of its parts, of softmax weighted by their log-sum-exp."""
    row = tl.program_id(0)
    t, head, b = row % T, row // T % HEADS, row // T // HEADS
    i, d = tl.arange(0, BLOCK), tl.arange(0, F.block_dv)
    at = parts + i.to(tl.int64)[:, None] * out_step + tl.cast(row, tl.int64) * F.dv + d[None, :]
    x = tl.load(at, mask=(i < splits)[:, None] & (d < F.dv)[None, :], other=0.0)
    if F.h == "softmax":
        each = tl.load(
            parts_lse + i.to(tl.int64) * lse_step + row, mask=i < splits, other=float("-inf")
        )
        most = tl.max(each, 0)
        most = tl.where(most == float("-inf"), 0.0, most)
        share = tl.exp(each - most)
        whole = tl.sum(share, 0)
        none = whole == 0.0
        whole = tl.where(none, 1.0, whole)
        tl.store(lse + row, tl.where(none, float("-inf"), most + tl.log(whole)))
        x *= (share / whole)[:, None]
    total = tl.sum(x, 0)
    at = _head(out, out_st, b, head) + tl.cast(t, tl.int64) * out_st[2] + d * out_st[3]
    tl.store(at, total.to(out.dtype.element_ty), mask=d < F.dv)
