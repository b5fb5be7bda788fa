"""Launches the Triton kernels: strides, padded sizes, grids.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from attnpass.kernels import hydra_triton, tiled
from attnpass.kernels.gpu import LEAST, power
from attnpass.kernels.pointwise_backward_triton import (
    pointwise_bias,
    pointwise_keys,
    pointwise_queries,
)
from attnpass.kernels.pointwise_triton import Form, pointwise_forward

UNIT = {"sigmoid": -1.4426950408889634, "sigmoid_tanh": 0.5}
"""What h takes its logit times, where not 1: ``exp2`` wants base 2, ``tanh`` half."""

Strides = tuple[int, ...]


def _spread(x: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, Strides]:
    """``x`` broadcast to ``shape`` without a copy, and its strides; zeros where there is none."""
    if x is None:
        return None, (0,) * len(shape)
    wide = x.expand(shape)
    return wide, wide.stride()


def _tf32() -> bool:
    """Whether torch multiplies float32 in TensorFloat-32, by its newer or its older setting."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting not in ("none", "ieee"):
        return bool(setting == "tf32")
    return setting == "none" and bool(torch.backends.cuda.matmul.allow_tf32)


def _kind(x: Tensor | None) -> int:
    """0: there is none; 1: one value per head; 2: one per row."""
    return 0 if x is None else 1 if x.stride(2) == 0 or x.shape[2] == 1 else 2


def _blocks(n: int, block: int) -> int:
    return -(-n // block)


def _constant(form: Any) -> Any:
    """A form as a compiled kernel takes it: older compilers see plain fields as no constants."""
    if triton.knobs.runtime.interpret:
        return form
    return type(form)(*map(triton.language.constexpr, form))


def _capability() -> int:
    """80 for sm80 and so on; 0 where kernels run without an NVIDIA GPU."""
    if triton.knobs.runtime.interpret:
        return 0
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else 0


class _Call:
    """The arguments that every kernel of one call shares."""

    def __init__(
        self,
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
        slopes: Tensor | None,
        lengths: Tensor | None,
        window: int,
        *more: Tensor,
    ) -> None:
        (b, heads, t, d), (g, s), dv = q.shape, k.shape[1:3], v.shape[3]
        self.b, self.heads, self.groups, self.t, self.s = b, heads, g, t, s
        self.tile = tile
        added, added_st = _spread(bias, (b, heads, t, s))
        flags = None if keep is None else keep.view(torch.uint8)
        kept, kept_st = _spread(flags, (b, heads, t, s))
        row = (b, heads, t, 1)
        self.offset, self.offset_st = _spread(None if offset is None else offset.float(), row)
        self.gain, self.gain_st = _spread(None if gain is None else gain.float(), row)
        self.tau = None if tau is None else tau.float()
        self.slopes = None if slopes is None else slopes.float()
        self.lengths = None if lengths is None else lengths.int()
        self.scale, self.window = scale, window
        furthest = max(abs(x.stride(2)) for x in (q, k, v, *more)) * max(tile[:2])
        self.form = Form(
            h=h,
            unit=UNIT.get(h, 1.0),
            causal=causal,
            windowed=window > 0,
            bias=bias is not None,
            keep=keep is not None,
            tau=tau is not None,
            offset=_kind(self.offset),
            gain=_kind(self.gain),
            slopes=slopes is not None,
            lengths=lengths is not None,
            d=d,
            dv=dv,
            block_d=power(d),
            block_dv=power(dv),
            precision="tf32" if q.device.type == "cuda" and _tf32() else "ieee",
            big=furthest >= 2**30,
            device=_capability() >= LEAST,
            m=tile[0],
            n=tile[1],
            warps=tile[2],
            descriptors=False,
            persistent=bool(tile[6]),
        )
        scalars = (self.tau, self.offset, self.gain, self.slopes, self.lengths)
        self.terms = (added, kept, *scalars)
        masks = (added_st, kept_st)
        self.strides = (q.stride(), k.stride(), v.stride(), *masks, self.offset_st, self.gain_st)
        self.options = {
            "num_warps": tile[2],
            "num_stages": tile[3],
            "enable_fp_fusion": True,
        }

    def described(self, *tensors: Tensor) -> tuple[Form, tuple[TensorDescriptor | None, ...]]:
        """Descriptors of the blocks that a loop reads, where the tile wants them, and the form.

        There are none where hardware refuses one: it wants unit stride along features, 16 bytes
        between rows, heads and items, and no broadcast.
        """
        found: list[TensorDescriptor | None] = []
        for x in tensors if self.tile[5] and self.tile[1] <= 256 else ():
            size, strides = x.element_size(), x.stride()[:3]
            aligned = all(st * size % 16 == 0 for st in (x.data_ptr() // size, *strides))
            if not aligned or 0 in (*strides, x.numel()) or x.stride(3) != 1:
                break
            block = [1, 1, self.tile[1], power(x.shape[3])]
            if block[3] > 256:
                break
            found.append(TensorDescriptor(x, list(x.shape), list(x.stride()), block))
        if len(found) < len(tensors):
            return self.form, (None,) * len(tensors)
        return self.form._replace(descriptors=True), tuple(found)


_TIGHT: set[tuple[Any, ...]] = set()
"""Kernels and forms that fit the GPU with one pipeline stage alone."""


def _start(kernel: Any, grid: tuple[int, ...], call: _Call, *args: Any) -> None:
    """Launch a kernel, with one stage where a bias, which no estimate knows, leaves no more room.

    Raises:
        OutOfResources: a tile that does not fit by itself.
    """
    key = (kernel, call.form)
    for stages in (1,) if key in _TIGHT else (call.options["num_stages"], 1):
        try:
            kernel[grid](*args, **{**call.options, "num_stages": stages})
            return
        except OutOfResources:
            if stages == 1 or not call.form.bias:
                raise
            _TIGHT.add(key)


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
    out = tiled.heads_last(q, v.shape[3])
    if out.numel() == 0:
        return out
    given = (bias, keep, tau, offset, gain, scale, h, causal, tile, slopes, lengths, window)
    call = _Call(q, k, v, *given)
    form, descriptors = call.described(k, v)
    tiles = _blocks(call.t, tile[0]) * call.b * call.heads
    _start(
        pointwise_forward,
        (min(tiles, _programs(q)) if tile[6] else tiles,),
        call,
        q,
        k,
        v,
        *call.terms,
        *descriptors,
        out,
        *call.strides,
        out.stride(),
        call.t,
        call.s,
        call.heads,
        call.heads // call.groups,
        scale,
        window,
        tiles,
        _constant(form),
    )
    return out


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
    given = (bias, keep, tau, offset, gain, scale, h, causal, tile, slopes, lengths, window)
    call = _Call(q, k, v, *given, grad)
    b, heads, t, s, groups = call.b, call.heads, call.t, call.s, call.groups
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    blocks = _blocks(t, tile[0])
    dtau = None if tau is None else q.new_empty((b, heads, blocks), dtype=torch.float32)
    doffset, dgain = (
        None if x is None else q.new_empty((b, heads, t, 1), dtype=torch.float32)
        for x in (offset, gain)
    )
    inputs = (grad, q, k, v, *call.terms)
    strides = (grad.stride(), *call.strides)
    if b * heads * blocks:
        form, descriptors = call.described(k, v)
        _start(
            pointwise_queries,
            (b * heads * blocks,),
            call,
            *inputs,
            *descriptors,
            dq,
            dtau,
            doffset,
            dgain,
            *strides,
            dq.stride(),
            *(t, s, heads, heads // groups, scale, call.window, _constant(form)),
        )
    if b * groups * s:
        # a tile's rows are what a program owns: here keys, in steps of queries
        form, descriptors = call.described(q, grad)
        form = form._replace(m=tile[1], n=tile[0])
        _start(
            pointwise_keys,
            (b * groups * _blocks(s, tile[0]),),
            call,
            *inputs,
            *descriptors,
            dk,
            dv,
            *strides,
            dk.stride(),
            dv.stride(),
            *(t, s, groups, heads // groups, scale, call.window, _constant(form)),
        )
    dbias = (
        _bias_gradient(call, bias, inputs, strides) if needs_bias and bias is not None else None
    )
    if tau is not None and dtau is not None:
        dtau = dtau.sum((0, 2)) / tau
    sums = ((dbias, bias), (dtau, tau), (doffset, offset), (dgain, gain))
    rest = [
        q.new_empty(0) if x is None or y is None else x.sum_to_size(y.shape).to(y.dtype)
        for x, y in sums
    ]
    return [dq, dk, dv, *rest]


def _bias_gradient(
    call: _Call, bias: Tensor, inputs: tuple[Any, ...], strides: tuple[Strides, ...]
) -> Tensor:
    """The bias' gradient in float32, of its shape."""
    shape = (1,) * (4 - bias.dim()) + bias.shape
    m, n = call.tile[:2]
    if bias.numel() == 0 or 0 in (call.b, call.heads, call.t, call.s):
        return torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
    full = (call.b, call.heads, call.t, call.s)
    shared = [1 if own == size else size for own, size in zip(shape, full, strict=True)]
    tiles = shape[0] * shape[1] * _blocks(shape[2], m) * _blocks(shape[3], n)
    shares = shared[0] * shared[1] * _blocks(shared[2], m) * _blocks(shared[3], n)
    # a bias that much is shared of has few tiles of its own: several programs for each
    parts = max(1, min(shares, 4 * _programs(bias) // tiles))
    found = torch.empty((parts, *shape), dtype=torch.float32, device=bias.device)
    _start(
        pointwise_bias,
        (tiles, parts),
        call,
        *inputs,
        found,
        *strides,
        call.t,
        call.s,
        call.heads // call.groups,
        shared[0],
        shared[1],
        _blocks(shared[2], m),
        _blocks(shared[3], n),
        shape[2],
        shape[3],
        shape[1],
        call.scale,
        call.window,
        shape[2] == 1,
        shape[3] == 1,
        _constant(call.form),
    )
    return found.sum(0).view(bias.shape)


def _programs(q: Tensor) -> int:
    """How many programs a persistent grid has: one for each multiprocessor."""
    if q.device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(q.device).multi_processor_count


class _Tokens:
    """The arguments that every kernel of one call of hydra shares."""

    def __init__(
        self, q: Tensor, k: Tensor, keep: Tensor | None, gain: Tensor | None, warps: int
    ) -> None:
        (b, heads, _, d), s = q.shape, k.shape[2]
        self.b, self.features = b, heads * d
        block = power(self.features)
        # what a token's features leave of the registers of the program
        rows = max(2, 1024 * warps // block)
        warps = max(warps, min(16, rows * block // 2048))
        self.options = {"num_warps": warps, "enable_fp_fusion": True}
        flags = None if keep is None else keep.view(torch.uint8)
        self.keep, self.keep_st = _spread(flags, (b, 1, 1, s))
        self.gain = None if gain is None else gain.float().contiguous()
        self.device = q.device
        self.form = hydra_triton.Form(
            features=self.features,
            block=block,
            d=d,
            rows=rows,
            causal=False,
            keep=keep is not None,
            gain=gain is not None,
        )

    def grid(self, x: Tensor) -> tuple[tuple[int, int], int]:
        """Items by chunks for the tokens of ``x``, and the steps of a chunk."""
        blocks = _blocks(x.shape[2], self.form.rows)
        steps = max(1, blocks * self.b // (4 * _programs(x)))
        return (self.b, _blocks(blocks, steps)), steps

    def sums(self, x: Tensor, y: Tensor, eps: float, *, keys: bool) -> Tensor:
        """``[B, chunks, H * D]``: the sum of ``x^ * y`` per chunk."""
        grid, steps = self.grid(x)
        out = torch.empty(
            (self.b, grid[1], self.features), dtype=torch.float32, device=self.device
        )
        keep = self.keep if keys else None
        strides = (x.stride(), y.stride(), self.keep_st)
        hydra_triton.hydra_sums[grid](
            *(x, y, keep, out, *strides, x.shape[2], steps, eps),
            _constant(self.form),
            keys and self.form.keep,
            **self.options,
        )
        return out


def _starts(sums: Tensor, causal: bool, reverse: bool = False) -> tuple[Tensor, Strides]:
    """What each chunk starts from: everything, or the sum of those before (after) it."""
    if not causal:
        total = sums.sum(1, keepdim=True)
        return total, (total.stride(0), 0)
    zero = torch.zeros_like(sums[:, :1])
    if reverse:
        out = torch.cat([sums[:, 1:].flip(1).cumsum(1).flip(1), zero], 1)
    else:
        out = torch.cat([zero, sums[:, :-1].cumsum(1)], 1)
    return out, out.stride()[:2]


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
    out = tiled.heads_last(q, q.shape[3])
    if out.numel() == 0:
        return out
    call = _Tokens(q, k, keep, gain, tile[2])
    before, before_st = _starts(call.sums(k, v, eps, keys=True), causal)
    grid, steps = call.grid(q)
    strides = (q.stride(), k.stride(), v.stride(), call.keep_st, before_st, out.stride())
    hydra_triton.hydra_apply[grid](
        *(q, k, v, call.keep, call.gain, before, out, *strides, q.shape[2], steps, eps),
        _constant(call.form._replace(causal=causal)),
        **call.options,
    )
    return out


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
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    if 0 in q.shape or k.shape[2] == 0:
        zeros = [torch.zeros_like(x) for x in (dq, dk, dv)]
        return [*zeros, q.new_empty(0) if gain is None else torch.zeros_like(gain)]
    call = _Tokens(q, k, keep, gain, tile[2])
    form = call.form._replace(causal=causal)
    before, before_st = _starts(call.sums(k, v, eps, keys=True), causal)
    after, after_st = _starts(call.sums(q, grad, eps, keys=False), causal, reverse=True)
    inputs = (grad, q, k, v, call.keep, call.gain)
    strides = (grad.stride(), q.stride(), k.stride(), v.stride(), call.keep_st)
    grid, steps = call.grid(q)
    dgain = None
    if gain is not None:
        dgain = torch.empty((call.b, grid[1], call.features), dtype=torch.float32, device=q.device)
    hydra_triton.hydra_queries[grid](
        *(*inputs, before, dq, dgain, *strides, before_st, dq.stride(), q.shape[2], steps, eps),
        _constant(form),
        **call.options,
    )
    grid, steps = call.grid(k)
    outputs = (dk.stride(), dv.stride())
    hydra_triton.hydra_keys[grid](
        *(*inputs, after, dk, dv, *strides, after_st, *outputs, k.shape[2], steps, eps),
        _constant(form),
        **call.options,
    )
    if dgain is None or gain is None:
        return [dq, dk, dv, q.new_empty(0)]
    return [dq, dk, dv, dgain.sum((0, 1)).view(gain.shape).to(gain.dtype)]
