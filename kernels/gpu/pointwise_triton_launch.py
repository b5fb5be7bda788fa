"""Launches the Triton kernel of the pointwise family's forward, and prepares every launch.

The backward (``pointwise_backward_triton_launch.py``) shares ``prepare``, ``described`` and
``start``.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.call import Normalised, PointwiseCall, Sizes
from attnpass.kernels.gpu.launch import Strides, block_count, constant, programs, spread
from attnpass.kernels.gpu.limits import MIN_CAPABILITY, check_powers, power
from attnpass.kernels.gpu.pointwise_triton import Form, joined, pointwise_forward
from attnpass.kernels.shapes import heads_last

UNIT = {"sigmoid": -1.4426950408889634, "sigmoid_tanh": 0.5, SOFTMAX: 1.4426950408889634}
"""The factor on the logits that an h takes, where it is not 1.

``exp2`` takes powers of 2, and ``tanh`` half the logit.
"""

MOST_OFFSET = 2**30
"""From this many entries on a block's offsets are computed in 64 bits."""


def _tf32() -> bool:
    """Whether torch multiplies float32 in TensorFloat-32, by its newer or its older setting."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if setting not in ("none", "ieee"):
        return bool(setting == "tf32")
    return setting == "none" and bool(torch.backends.cuda.matmul.allow_tf32)


def _kind(x: Tensor | None) -> int:
    """0 without a tensor, 1 for one value per head, 2 for one value per row."""
    return 0 if x is None else 1 if x.stride(2) == 0 or x.shape[2] == 1 else 2


def _capability() -> int:
    """80 for sm80 and so on; 0 where kernels run without an NVIDIA GPU."""
    if triton.knobs.runtime.interpret:
        return 0
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else 0


@dataclass(frozen=True, eq=False)
class Prepared:
    """The arguments that every kernel of one call shares.

    Attributes:
        call: the call. sizes: its sizes.
        form: the constants that the kernels are compiled for, without descriptors.
        terms: bias, keep, tau, offset, gain, slopes and lengths as the kernels read them.
        strides: of q, k, v, bias, keep, offset and gain.
    """

    call: PointwiseCall
    sizes: Sizes
    form: Form
    terms: tuple[Tensor | None, ...]
    strides: tuple[Strides, ...]


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _vector(x: Tensor | None) -> Tensor | None:
    """A term per head as float32 without gaps: kernels take its entries by their place."""
    return None if x is None else x.float().contiguous()


def prepare(call: PointwiseCall, *more: Tensor) -> Prepared:
    """The shared arguments of a call; ``more`` are other tensors that its kernels read.

    Raises:
        ArgumentError: a tile that Triton cannot compile.
    """
    check_powers(call.tile, "block_m", "block_n", "warps")
    b, h, _, t, s, _, _ = sizes = call.sizes
    # a wider window keeps the same keys, but positions plus window would pass 31 bits
    call = replace(call, window=min(call.window, t + s))
    bias, bias_st = spread(call.bias, (b, h, t, s))
    flags = None if call.keep is None else call.keep.view(torch.uint8)
    keep, keep_st = spread(flags, (b, h, t, s))
    offset, offset_st = spread(_float(call.offset), (b, h, t, 1))
    gain, gain_st = spread(_float(call.gain), (b, h, t, 1))
    lengths = None if call.lengths is None else call.lengths.clamp(0, s).int().contiguous()
    inputs = (call.q, call.k, call.v)
    apart = max(max(x.stride()[2:]) for x in (*inputs, *more))
    return Prepared(
        call=call,
        sizes=sizes,
        form=_form(call, sizes, _kind(offset), _kind(gain), apart),
        terms=(bias, keep, _vector(call.tau), offset, gain, _vector(call.slopes), lengths),
        strides=(*(x.stride() for x in inputs), bias_st, keep_st, offset_st, gain_st),
    )


def _form(call: PointwiseCall, sizes: Sizes, offset: int, gain: int, apart: int) -> Form:
    """The constants of a call; ``apart`` is the largest stride of rows or features."""
    tile, width = call.tile, max(sizes.head_dim, sizes.value_dim)
    return Form(
        h=call.h,
        unit=UNIT.get(call.h, 1.0),
        causal=call.causal,
        windowed=call.window > 0,
        bias=call.bias is not None,
        keep=call.keep is not None,
        tau=call.tau is not None,
        offset=offset,
        gain=gain,
        slopes=call.slopes is not None,
        lengths=call.lengths is not None,
        d=sizes.head_dim,
        dv=sizes.value_dim,
        block_d=power(sizes.head_dim),
        block_dv=power(sizes.value_dim),
        precision="tf32" if call.q.device.type == "cuda" and _tf32() else "ieee",
        big=apart * max(tile.block_m, tile.block_n, width) >= MOST_OFFSET,
        device=_capability() >= MIN_CAPABILITY,
        m=tile.block_m,
        n=tile.block_n,
        warps=tile.warps,
        descriptors=False,
        persistent=bool(tile.persistent),
    )


def described(
    prepared: Prepared, *tensors: Tensor
) -> tuple[Form, tuple[TensorDescriptor | None, ...]]:
    """The form, and descriptors of the blocks that a loop reads, where the tile asks for them.

    There are none where the hardware refuses one: a descriptor needs unit stride along features,
    multiples of 16 bytes between rows, heads and items, no broadcast, and at most 256 rows and
    features a block.
    """
    tile, found = prepared.call.tile, list[TensorDescriptor | None]()
    for x in tensors if tile.descriptors and tile.block_n <= 256 else ():
        size, strides = x.element_size(), x.stride()[:3]
        aligned = all(st * size % 16 == 0 for st in (x.data_ptr() // size, *strides))
        if not aligned or 0 in (*strides, x.numel()) or x.stride(3) != 1:
            break
        width = power(x.shape[3])
        if width > 256:
            break
        block = [1, 1, tile.block_n, width]
        found.append(TensorDescriptor(x, list(x.shape), list(x.stride()), block))
    if len(found) < len(tensors):
        return prepared.form, (None,) * len(tensors)
    return prepared.form._replace(descriptors=True), tuple(found)


_ONE_STAGE: set[tuple[Any, Form]] = set()
"""Kernels and forms that fit the GPU with one pipeline stage alone."""


def start(kernel: Any, grid: tuple[int, ...], prepared: Prepared, *args: Any) -> None:
    """Launch a kernel, with one stage where a bias, which no estimate knows, leaves no more room.

    Raises:
        OutOfResources: a tile that does not fit without a bias either.
    """
    tile, key = prepared.call.tile, (kernel, prepared.form)
    for stages in (1,) if key in _ONE_STAGE else (tile.stages, 1):
        try:
            kernel[grid](*args, num_warps=tile.warps, num_stages=stages, enable_fp_fusion=True)
            return
        except OutOfResources:
            if stages == 1 or not prepared.form.bias:
                raise
            _ONE_STAGE.add(key)


def pointwise(call: PointwiseCall) -> Tensor:
    """``[B, H, T, dv]``; see ``PointwiseCall``."""
    return _forward(call, None)


def softmax(call: PointwiseCall) -> Normalised:
    """``softmax(scale q.k + bias) v [B, H, T, dv]`` and its log-sum-exp ``[B, H, T]``; dv > 0."""
    lse = call.q.new_empty(call.q.shape[:3], dtype=torch.float32)
    return Normalised(_forward(replace(call, h=SOFTMAX), lse), lse)


LEAST_CHUNK, MOST_PARTS = 256, 128
"""Keys that a program takes at least where several share a tile, and how many share it at most."""


def _forward(call: PointwiseCall, lse: Tensor | None) -> Tensor:
    out = heads_last(call.q, call.v.shape[3])
    if out.numel() > 0:
        _run(*_rows(call, out, lse))
    return out


def _rows(
    call: PointwiseCall, out: Tensor, lse: Tensor | None
) -> tuple[PointwiseCall, Tensor, Tensor | None]:
    """The query heads of a group as rows of one head, where there is one query, without copies.

    So a block reads the keys of the group once for all of them.
    """
    b, h, g, t, s, _, _ = call.sizes
    by_head = call.tau is not None or call.slopes is not None
    if t != 1 or h == g or by_head or call.causal or call.window > 0:
        return call, out, lse

    def rows(x: Tensor | None, last: int) -> Tensor | None:
        return None if x is None else x.expand(b, h, 1, last).unflatten(1, (g, h // g)).squeeze(3)

    packed = replace(
        call,
        q=call.q.unflatten(1, (g, h // g)).squeeze(3),
        bias=rows(call.bias, s),
        keep=rows(call.keep, s),
        offset=rows(call.offset, 1),
        gain=rows(call.gain, 1),
    )
    out = out.unflatten(1, (g, h // g)).squeeze(3)
    return packed, out, None if lse is None else lse.view(b, g, h // g)


def _run(call: PointwiseCall, out: Tensor, lse: Tensor | None) -> None:
    """Fill ``out [B, H, T, dv]`` and, of softmax, ``lse [B, H, T]``.

    Where there are fewer tiles than multiprocessors, as in decoding, programs share the keys of a
    tile, and a second kernel joins what they leave.
    """
    prepared, (b, h, g, t, s, _, dv) = prepare(call), call.sizes
    form, descriptors = described(prepared, call.k, call.v)
    tiles, most = block_count(t, call.tile.block_m) * b * h, programs(call.q)
    parts = min(s // LEAST_CHUNK, 2 * most // tiles, MOST_PARTS) if tiles < most else 1
    blocks = max(1, block_count(block_count(s, max(1, parts)), call.tile.block_n))
    chunk = blocks * call.tile.block_n
    parts = max(1, block_count(s, chunk))
    each, each_lse = out, lse
    if parts > 1:
        form = form._replace(split=True)
        each = out.new_empty(parts, b, h, t, dv, dtype=torch.float32)
        each_lse = None if lse is None else lse.new_empty(parts, b, h, t)
    steps = (b * h * t * dv, b * h * t)
    start(
        pointwise_forward,
        (min(tiles, most) if call.tile.persistent else tiles, parts),
        prepared,
        *(call.q, call.k, call.v, *prepared.terms, *descriptors, each, each_lse),
        *(*prepared.strides, each.stride()[-4:]),
        *(t, s, h, h // g, call.scale, prepared.call.window, tiles, chunk, *steps),
        constant(form),
    )
    if parts > 1:
        joined[b * h * t,](
            *(each, each_lse, out, lse, out.stride(), t, h, parts, *steps),
            *(1 << (parts - 1).bit_length(), constant(form)),
        )
