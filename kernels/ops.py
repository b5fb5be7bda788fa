"""The operators ``attnpass::pointwise`` and ``attnpass::hydra``: schema, fake, autograd.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim. The tile is an
argument; implementations are imported when an operator is called, never at import.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor


def _implementation(q: Tensor) -> Any:
    """The module that computes on the device of ``q``."""
    if q.device.type == "cuda":
        from attnpass.kernels import triton_launch

        return triton_launch
    from attnpass.kernels import cpu

    return cpu


@torch.library.custom_op("attnpass::pointwise", mutates_args=())
def pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Optional[Tensor],
    keep: Optional[Tensor],
    tau: Optional[Tensor],
    offset: Optional[Tensor],
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
) -> Tensor:
    """``sum_s keep * h(tau (scale q.k + bias) + offset) v``, ``[B, H, T, dv]`` (2409.04431).

    Args:
        q: ``[B, H, T, d]``; ``k`` is ``[B, G, S, d]`` and ``v`` ``[B, G, S, dv]``.
        k: keys. v: values.
        bias: float, broadcastable to ``[B, H, T, S]``; -inf masks.
        keep: bool, broadcastable likewise; masked after ``h``.
        tau: ``[H]`` float32 temperature. offset: float32, broadcastable to ``[B, H, T, 1]``.
        scale: factor on the logits. h: one of ``reference.H_FUNCTIONS``.
        causal: keep only s <= t. tile: ``Tile.as_list()``.
    """
    return _implementation(q).pointwise(  # type: ignore[no-any-return]
        q, k, v, bias, keep, tau, offset, scale, h, causal, tile
    )


@pointwise.register_fake
def _(q, k, v, bias, keep, tau, offset, scale, h, causal, tile):  # type: ignore[no-untyped-def]
    return q.new_empty((*q.shape[:3], v.shape[3]))


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
    scale: float,
    h: str,
    causal: bool,
    tile: list[int],
    needs_bias: bool,
) -> list[Tensor]:
    """Gradients of q, k, v, bias, tau, offset; an empty tensor where there is none."""
    return _implementation(q).pointwise_backward(  # type: ignore[no-any-return]
        grad, q, k, v, bias, keep, tau, offset, scale, h, causal, tile, needs_bias
    )


@pointwise_backward.register_fake
def _(grad, q, k, v, bias, keep, tau, offset, scale, h, causal, tile, needs_bias):  # type: ignore[no-untyped-def]
    like = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    rest = [bias if needs_bias else None, tau, offset]
    return like + [q.new_empty(0) if x is None else x.new_empty(x.shape) for x in rest]


def _save_pointwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _pointwise_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    needs_bias = bool(ctx.needs_input_grad[3])
    dq, dk, dv, dbias, dtau, doffset = torch.ops.attnpass.pointwise_backward(
        grad, *saved, *ctx.rest, needs_bias
    )
    return (
        dq,
        dk,
        dv,
        dbias if needs_bias else None,
        None,
        dtau if saved[5] is not None else None,
        doffset if saved[6] is not None else None,
        None,
        None,
        None,
        None,
    )


pointwise.register_autograd(_pointwise_grad, setup_context=_save_pointwise)


@torch.library.custom_op("attnpass::hydra", mutates_args=())
def hydra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Optional[Tensor],
    causal: bool,
    eps: float,
    tile: list[int],
) -> Tensor:
    """Hydra attention ``q^ * sum_s (k^ * v)``, ``[B, H, T, d]`` (2209.07484).

    Args:
        q: ``[B, H, T, d]``; ``k``, ``v`` ``[B, H, S, d]`` (repeat grouped heads first).
        k: keys. v: values. keep: bool ``[B|1, 1, 1, S]``. causal: cumulative sum (T = S).
        eps: floor of the squared norm over all H*d features. tile: ``Tile.as_list()``.
    """
    return _implementation(q).hydra(q, k, v, keep, causal, eps, tile)  # type: ignore[no-any-return]


@hydra.register_fake
def _(q, k, v, keep, causal, eps, tile):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)


def _save_hydra(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.causal, ctx.eps = inputs[4], inputs[5]


def _hydra_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k, v, keep = ctx.saved_tensors
    wide = torch.promote_types(q.dtype, torch.float32)
    (qn, rq, fq), (kn, rk, fk) = (_unit(x.to(wide), ctx.eps) for x in (q, k))
    weight = kn if keep is None else kn * keep.transpose(-1, -2)
    kv = weight * v.to(wide)
    total = kv.cumsum(2) if ctx.causal else kv.sum(2, keepdim=True)
    g = grad.to(wide)
    dtotal = g * qn
    dkv = dtotal.flip(2).cumsum(2).flip(2) if ctx.causal else dtotal.sum(2, keepdim=True)
    dkn = dkv * v.to(wide) if keep is None else dkv * v.to(wide) * keep.transpose(-1, -2)
    dq = _unit_grad(g * total, qn, rq, fq)
    dk = _unit_grad(dkn, kn, rk, fk)
    return dq.to(q.dtype), dk.to(k.dtype), (dkv * weight).to(v.dtype), None, None, None, None


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` over its norm across heads and features, and the reciprocal norm ``[B, 1, T, 1]``."""
    square = (x * x).sum((1, 3), keepdim=True)
    r = square.clamp_min(eps).rsqrt()
    return x * r, r, square >= eps


def _unit_grad(grad: Tensor, unit: Tensor, r: Tensor, above: Tensor) -> Tensor:
    """Gradient through ``_unit``; below the floor the norm is a constant."""
    radial = (grad * unit).sum((1, 3), keepdim=True)
    return (grad - unit * radial * above) * r


hydra.register_autograd(_hydra_grad, setup_context=_save_hydra)
