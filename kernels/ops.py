"""The operators ``attnpass::pointwise``, ``softmax`` and ``hydra``: schemas, fakes and autograd.

Compiled graphs and caches hold the schemas: names, order and defaults of the arguments must not
change. Behind the schema every function takes a ``PointwiseCall`` or a ``HydraCall``. Each call is
checked before it runs and when it is traced: ``check`` says what a valid one is.
Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Protocol

import torch
from torch import Tensor

from attnpass.kernels import check, dispatch
from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.shapes import heads_last, wide
from attnpass.kernels.tile import Tile


def _filled(q: Tensor, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients as an operator returns them: an empty tensor for none."""
    return [q.new_empty(0) if x is None else x for x in gradients]


def _fakes(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of q, k and v without values."""
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _traced_tile(numbers: Sequence[int]) -> Tile:
    """The tile of a call that is traced; any sound one where a number is symbolic."""
    return Tile.from_list(numbers) if all(type(n) is int for n in numbers) else Tile()


@torch.library.custom_op("attnpass::pointwise", mutates_args=())
def pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Optional[Tensor],
    keep: Optional[Tensor],
    tau: Optional[Tensor],
    offset: Optional[Tensor],
    gain: Optional[Tensor],
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
    grad_tile: list[int],
    slopes: Optional[Tensor] = None,
    lengths: Optional[Tensor] = None,
    window: int = 0,
) -> Tensor:
    """``gain sum_s keep h(tau (scale q.k + bias) + offset) v``, ``[B, H, T, dv]`` (2409.04431).

    Differentiable in q, k, v, bias, tau, offset and gain. The arguments are those of
    ``PointwiseCall``, but for the tiles.

    Args:
        q: queries ``[B, H, T, d]``.
        k: keys ``[B, G, S, d]``.
        v: values ``[B, G, S, dv]``.
        bias: float, broadcastable to ``[B, H, T, S]``; -inf masks the position.
        keep: bool, broadcastable to ``[B, H, T, S]``; applied after ``h``.
        tau: temperature > 0, float ``[H]``.
        offset: float, broadcastable to ``[B, H, T, 1]``.
        gain: float, broadcastable to ``[B, H, T, 1]``.
        scale: factor on the products of queries and keys.
        h: a key of ``activations.H``, or ``sigmoid_tanh``: on a GPU the hardware's tanh, quicker,
            and wrong by up to 2^-12 of 1, which is as much as a whole weight of 1/4096.
        causal: whether only the keys s <= t are kept.
        tile: ``Tile.as_list()`` of the forward.
        grad_tile: ``Tile.as_list()`` of the backward.
        slopes: float ``[H]``; ``- slope |t - s|`` is added to the bias (ALiBi, 2108.12409).
        lengths: int ``[B]``; only the first ``lengths[b]`` keys of an item are kept.
        window: only the keys with ``|t - s| < window`` are kept; 0 keeps all.

    Raises:
        ArgumentError: not a valid call, or a tile with a size out of range.
    """
    given = (q, k, v, bias, keep, tau, offset, gain, scale, h, causal)
    call = PointwiseCall(*given, Tile.from_list(tile), slopes, lengths, window)
    Tile.from_list(grad_tile)  # a tile of the backward is refused before the forward runs
    check.pointwise(call)
    return dispatch.pointwise(call)


@pointwise.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    x = _PointwiseArguments(q, k, v, *rest)
    _traced_tile(x.grad_tile)
    terms = (x.bias, x.keep, x.tau, x.offset, x.gain, x.scale, x.h, x.causal)
    more = (_traced_tile(x.tile), x.slopes, x.lengths, x.window)
    check.pointwise(PointwiseCall(q, k, v, *terms, *more), traced=True)
    return heads_last(q, v.shape[3])


@torch.library.custom_op("attnpass::pointwise_backward", mutates_args=())
def pointwise_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Optional[Tensor],
    keep: Optional[Tensor],
    tau: Optional[Tensor],
    offset: Optional[Tensor],
    gain: Optional[Tensor],
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
    needs_bias: bool,
    slopes: Optional[Tensor] = None,
    lengths: Optional[Tensor] = None,
    window: int = 0,
) -> list[Tensor]:
    """The gradients of q, k, v, bias, tau, offset and gain; an empty tensor where there is none.

    The arguments are those of ``pointwise``, after ``grad [B, H, T, dv]``; ``needs_bias``: whether
    the bias gets its gradient.

    Raises:
        ArgumentError: not a valid call, or a tile with a size out of range.
    """
    given = (q, k, v, bias, keep, tau, offset, gain, scale, h, causal)
    call = PointwiseCall(*given, Tile.from_list(tile), slopes, lengths, window)
    check.pointwise(call)
    check.gradient(grad, q, v)
    return _filled(q, dispatch.pointwise_backward(grad, call, needs_bias))


@pointwise_backward.register_fake
def _(
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
    given = (q, k, v, bias, keep, tau, offset, gain, scale, h, causal)
    call = PointwiseCall(*given, _traced_tile(tile), slopes, lengths, window)
    check.pointwise(call, traced=True)
    check.gradient(grad, q, v, traced=True)
    others = [bias if needs_bias else None, tau, offset, gain]
    terms = [None if x is None else x.new_empty(x.shape) for x in others]
    return [*_fakes((q, k, v)), *_filled(q, terms)]


class _PointwiseArguments(NamedTuple):
    """The arguments of ``attnpass::pointwise`` in the order of its schema."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    keep: Tensor | None
    tau: Tensor | None
    offset: Tensor | None
    gain: Tensor | None
    scale: float
    h: str
    causal: bool
    tile: list[int]
    grad_tile: list[int]
    slopes: Tensor | None = None
    lengths: Tensor | None = None
    window: int = 0


class _Saved(Protocol):
    """What autograd keeps for a backward."""

    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _PointwiseSaved(_Saved, Protocol):
    options: tuple[float, str, bool, list[int]]
    window: int


def _save_pointwise(ctx: _PointwiseSaved, inputs: tuple[Any, ...], output: Tensor) -> None:
    x = _PointwiseArguments(*inputs)
    terms = (x.bias, x.keep, x.tau, x.offset, x.gain)
    ctx.save_for_backward(x.q, x.k, x.v, *terms, x.slopes, x.lengths)
    ctx.options, ctx.window = (x.scale, x.h, x.causal, x.grad_tile), x.window


def _pointwise_grad(ctx: _PointwiseSaved, grad: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, slopes, lengths = ctx.saved_tensors
    _, _, _, _, _, tau, offset, gain = inputs
    needs_bias = bool(ctx.needs_input_grad[_PointwiseArguments._fields.index("bias")])
    dq, dk, dv, dbias, dtau, doffset, dgain = torch.ops.attnpass.pointwise_backward(
        grad, *inputs, *ctx.options, needs_bias, slopes, lengths, ctx.window
    )
    found = {
        "q": dq,
        "k": dk,
        "v": dv,
        "bias": dbias if needs_bias else None,
        "tau": None if tau is None else dtau,
        "offset": None if offset is None else doffset,
        "gain": None if gain is None else dgain,
    }
    return tuple(found.get(name) for name in _PointwiseArguments._fields)


pointwise.register_autograd(_pointwise_grad, setup_context=_save_pointwise)


def _softmax_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    scale: float,
    causal: bool,
    tile: Tile,
    traced: bool = False,
) -> PointwiseCall:
    """A checked call of softmax."""
    call = PointwiseCall(q, k, v, bias, keep, None, None, None, scale, SOFTMAX, causal, tile)
    check.pointwise(call, traced, known=(SOFTMAX,))
    return call


@torch.library.custom_op("attnpass::softmax", mutates_args=())
def softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Optional[Tensor],
    keep: Optional[Tensor],
    scale: float,
    causal: bool,
    tile: list[int],
    grad_tile: list[int],
) -> tuple[Tensor, Tensor]:
    """``softmax(scale q.k + bias) v [B, H, T, dv]``, and its log-sum-exp ``[B, H, T]``.

    Both are differentiable in q, k, v and bias. In a row without a kept key they are 0 and -inf.

    Args:
        q: queries ``[B, H, T, d]``.
        k: keys ``[B, G, S, d]``.
        v: values ``[B, G, S, dv]``.
        bias: float, broadcastable to ``[B, H, T, S]``; -inf masks the position.
        keep: bool, broadcastable to ``[B, H, T, S]``.
        scale: factor on the products of queries and keys.
        causal: whether only the keys s <= t are kept.
        tile: ``Tile.as_list()`` of the forward.
        grad_tile: ``Tile.as_list()`` of the backward.

    Raises:
        ArgumentError: not a valid call, or a tile with a size out of range.
    """
    Tile.from_list(grad_tile)  # a tile of the backward is refused before the forward runs
    call = _softmax_call(q, k, v, bias, keep, scale, causal, Tile.from_list(tile))
    found = dispatch.softmax(call)
    return found.out, found.lse


@softmax.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    scale: float,
    causal: bool,
    tile: list[int],
    grad_tile: list[int],
) -> tuple[Tensor, Tensor]:
    _traced_tile(grad_tile)
    _softmax_call(q, k, v, bias, keep, scale, causal, _traced_tile(tile), traced=True)
    return heads_last(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=wide(q[..., :0]).dtype)


@torch.library.custom_op("attnpass::softmax_backward", mutates_args=())
def softmax_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Optional[Tensor],
    keep: Optional[Tensor],
    lse: Tensor,
    delta: Tensor,
    scale: float,
    causal: bool,
    tile: list[int],
    needs_bias: bool,
    out: Optional[Tensor] = None,
) -> list[Tensor]:
    """The gradients of q, k, v and bias; an empty tensor where there is none.

    The arguments are those of ``softmax``, after ``grad [B, H, T, dv]``; ``lse`` is its second
    result. ``delta [B, H, T]``, and where it is given the products of ``out [B, H, T, dv]`` with
    ``grad``, are what the weights of a row times their gradients sum up to.

    Raises:
        ArgumentError: not a valid call, or a tile with a size out of range.
    """
    call = _softmax_call(q, k, v, bias, keep, scale, causal, Tile.from_list(tile))
    check.gradient(grad, q, v)
    check.rows(q, lse=lse, delta=delta)
    if out is not None:
        check.gradient(out, q, v, name="out")
    found = dispatch.softmax_backward(grad, call, lse, delta, needs_bias, out)
    return _filled(q, found[:4])


@softmax_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    causal: bool,
    tile: list[int],
    needs_bias: bool,
    out: Tensor | None = None,
) -> list[Tensor]:
    _softmax_call(q, k, v, bias, keep, scale, causal, _traced_tile(tile), traced=True)
    check.gradient(grad, q, v, traced=True)
    check.rows(q, traced=True, lse=lse, delta=delta)
    if out is not None:
        check.gradient(out, q, v, traced=True, name="out")
    dbias = None if bias is None or not needs_bias else bias.new_empty(bias.shape)
    return [*_fakes((q, k, v)), *_filled(q, [dbias])]


class _SoftmaxSaved(_Saved, Protocol):
    options: tuple[float, bool, list[int]]


def _save_softmax(
    ctx: _SoftmaxSaved, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, bias, keep, scale, causal, _, grad_tile = inputs
    ctx.save_for_backward(q, k, v, bias, keep, *output)
    ctx.options = scale, causal, grad_tile


def _softmax_grad(
    ctx: _SoftmaxSaved, grad: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, bias, keep, out, lse = ctx.saved_tensors
    assert out is not None and lse is not None
    # a weight's gradient enters the logits less its mean; that of the log-sum-exp adds to it
    delta = lse.new_zeros(()).expand(lse.shape) if grad_lse is None else -grad_lse
    needs_bias = bool(ctx.needs_input_grad[3])
    dq, dk, dv, dbias = torch.ops.attnpass.softmax_backward(
        grad, q, k, v, bias, keep, lse, delta, *ctx.options, needs_bias, out
    )
    return dq, dk, dv, dbias if needs_bias else None, None, None, None, None, None


softmax.register_autograd(_softmax_grad, setup_context=_save_softmax)


@torch.library.custom_op("attnpass::hydra", mutates_args=())
def hydra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Optional[Tensor],
    gain: Optional[Tensor],
    causal: bool,
    eps: float,
    tile: list[int],
) -> Tensor:
    """Hydra attention ``gain q^ * sum_s (k^ * v)``, ``[B, H, T, d]`` (2209.07484).

    Differentiable in q, k, v and gain.

    Args:
        q: queries ``[B, H, T, d]``.
        k: keys ``[B, H, S, d]``; repeat grouped heads first.
        v: values ``[B, H, S, d]``.
        keep: bool ``[B|1, 1, 1, S]``.
        gain: float ``[1, H, 1, d]``.
        causal: whether the sum runs over s <= t alone, which needs T = S.
        eps: floor of the squared norm over all H * d features.
        tile: ``Tile.as_list()`` of both directions.

    Raises:
        ArgumentError: not a valid call, or a tile with a size out of range.
    """
    call = HydraCall(q, k, v, keep, gain, causal, eps, Tile.from_list(tile))
    check.hydra(call)
    return dispatch.hydra(call)


@hydra.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    gain: Tensor | None,
    causal: bool,
    eps: float,
    tile: list[int],
) -> Tensor:
    check.hydra(HydraCall(q, k, v, keep, gain, causal, eps, _traced_tile(tile)), traced=True)
    return heads_last(q, q.shape[3])


@torch.library.custom_op("attnpass::hydra_backward", mutates_args=())
def hydra_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Optional[Tensor],
    gain: Optional[Tensor],
    causal: bool,
    eps: float,
    tile: list[int],
) -> list[Tensor]:
    """The gradients of q, k, v and gain; an empty tensor where there is none.

    The arguments are those of ``hydra``, after ``grad [B, H, T, d]``.

    Raises:
        ArgumentError: not a valid call, or a tile with a size out of range.
    """
    call = HydraCall(q, k, v, keep, gain, causal, eps, Tile.from_list(tile))
    check.hydra(call)
    check.gradient(grad, q, v)
    return _filled(q, dispatch.hydra_backward(grad, call))


@hydra_backward.register_fake
def _(
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
    call = HydraCall(q, k, v, keep, gain, causal, eps, _traced_tile(tile))
    check.hydra(call, traced=True)
    check.gradient(grad, q, v, traced=True)
    dgain = None if gain is None else gain.new_empty(gain.shape)
    return [*_fakes((q, k, v)), *_filled(q, [dgain])]


class _HydraSaved(_Saved, Protocol):
    options: tuple[bool, float, list[int]]


def _save_hydra(ctx: _HydraSaved, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, keep, gain, causal, eps, tile = inputs
    ctx.save_for_backward(q, k, v, keep, gain)
    ctx.options = (causal, eps, tile)


def _hydra_grad(ctx: _HydraSaved, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, keep, gain = ctx.saved_tensors
    dq, dk, dv, dgain = torch.ops.attnpass.hydra_backward(grad, q, k, v, keep, gain, *ctx.options)
    return dq, dk, dv, None, None if gain is None else dgain, None, None, None


hydra.register_autograd(_hydra_grad, setup_context=_save_hydra)
