"""Launches the Triton kernels of the pointwise family: strides, padded sizes, grids.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from attnpass.kernels.gpu.launch import Strides, block_count, constant, programs, spread
from attnpass.kernels.gpu.limits import LEAST, power
from attnpass.kernels.gpu.pointwise_backward_triton import (
    pointwise_bias,
    pointwise_keys,
    pointwise_queries,
)
from attnpass.kernels.gpu.pointwise_triton import Form, pointwise_forward
from attnpass.kernels.shapes import heads_last

UNIT = {"sigmoid": -1.4426950408889634, "sigmoid_tanh": 0.5}
"""What h takes its logit times, where not 1: ``exp2`` wants base 2, ``tanh`` half."""


def _tf32() -> bool:
    """Whether torch multiplies float32 in TensorFloat-32, by its newer or its older setting."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting not in ("none", "ieee"):
        return bool(setting == "tf32")
    return setting == "none" and bool(torch.backends.cuda.matmul.allow_tf32)


def _kind(x: Tensor | None) -> int:
    """0: there is none; 1: one value per head; 2: one per row."""
    return 0 if x is None else 1 if x.stride(2) == 0 or x.shape[2] == 1 else 2


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
        added, added_st = spread(bias, (b, heads, t, s))
        flags = None if keep is None else keep.view(torch.uint8)
        kept, kept_st = spread(flags, (b, heads, t, s))
        row = (b, heads, t, 1)
        self.offset, self.offset_st = spread(None if offset is None else offset.float(), row)
        self.gain, self.gain_st = spread(None if gain is None else gain.float(), row)
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
    out = heads_last(q, v.shape[3])
    if out.numel() == 0:
        return out
    given = (bias, keep, tau, offset, gain, scale, h, causal, tile, slopes, lengths, window)
    call = _Call(q, k, v, *given)
    form, descriptors = call.described(k, v)
    tiles = block_count(call.t, tile[0]) * call.b * call.heads
    _start(
        pointwise_forward,
        (min(tiles, programs(q)) if tile[6] else tiles,),
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
        constant(form),
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
    blocks = block_count(t, tile[0])
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
            *(t, s, heads, heads // groups, scale, call.window, constant(form)),
        )
    if b * groups * s:
        # a tile's rows are what a program owns: here keys, in steps of queries
        form, descriptors = call.described(q, grad)
        form = form._replace(m=tile[1], n=tile[0])
        _start(
            pointwise_keys,
            (b * groups * block_count(s, tile[0]),),
            call,
            *inputs,
            *descriptors,
            dk,
            dv,
            *strides,
            dk.stride(),
            dv.stride(),
            *(t, s, groups, heads // groups, scale, call.window, constant(form)),
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
    tiles = shape[0] * shape[1] * block_count(shape[2], m) * block_count(shape[3], n)
    shares = shared[0] * shared[1] * block_count(shared[2], m) * block_count(shared[3], n)
    # a bias that much is shared of has few tiles of its own: several programs for each
    parts = max(1, min(shares, 4 * programs(bias) // tiles))
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
        block_count(shared[2], m),
        block_count(shared[3], n),
        shape[2],
        shape[3],
        shape[1],
        call.scale,
        call.window,
        shape[2] == 1,
        shape[3] == 1,
        constant(call.form),
    )
    return found.sum(0).view(bias.shape)
