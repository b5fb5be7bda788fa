"""The operators ``attnpass::pointwise`` and ``attnpass::hydra``: schema, fake, autograd.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim. The tile is an
argument; implementations are imported when an operator is called, never at import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Optional

import torch
from torch import Tensor

from attnpass.kernels.gpu import limits
from attnpass.kernels.shapes import heads_last


def _run(name: str, q: Tensor, *args: Any) -> Any:
    """The function ``name`` of the module that computes on the device of ``q``."""
    if q.device.type == "cuda" and limits.capability() >= limits.LEAST:
        family = name.removesuffix("_backward")
        launch = import_module(f"attnpass.kernels.gpu.{family}_triton_launch")
        with torch.cuda.device_of(q):  # kernels start on the current device
            return getattr(launch, name)(*args)
    return getattr(import_module("attnpass.kernels.cpu.launch"), name)(*args)


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

    Args:
        q: ``[B, H, T, d]``; ``k`` is ``[B, G, S, d]`` and ``v`` ``[B, G, S, dv]``.
        k: keys. v: values.
        bias: float, broadcastable to ``[B, H, T, S]``; -inf masks.
        keep: bool, broadcastable likewise; masked after ``h``.
        tau: ``[H]`` float32 temperature > 0.
        offset, gain: float32, broadcastable to ``[B, H, T, 1]``.
        scale: factor on the logits.
        h: one of ``reference.H_FUNCTIONS``, or ``sigmoid_tanh``: on a GPU the hardware's tanh,
            quicker and wrong by up to 2^-12 of 1, which is all of a weight of 1/4096.
        causal: keep only s <= t. tile, grad_tile: ``Tile.as_list()`` of each direction.
        slopes: ``[H]`` float32; ALiBi: ``- slope |t - s|`` is added to the bias (2108.12409). A
            constant: it gets no gradient.
        lengths: ``[B]`` int; only the first ``lengths[b]`` keys of an item are kept.
        window: keep only ``|t - s| < window``; 0: all.
    """
    return _run(  # type: ignore[no-any-return]
        *("pointwise", q),
        *(q, k, v, bias, keep, tau, offset, gain, scale, h, causal, tile),
        *(slopes, lengths, window),
    )


@pointwise.register_fake
def _(q, k, v, bias, keep, tau, offset, gain, scale, h, causal, tile, grad_tile, *rest):  # type: ignore[no-untyped-def]
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
    """Gradients of q, k, v, bias, tau, offset, gain; an empty tensor where there is none."""
    return _run(  # type: ignore[no-any-return]
        *("pointwise_backward", q),
        *(grad, q, k, v, bias, keep, tau, offset, gain, scale, h, causal, tile, needs_bias),
        *(slopes, lengths, window),
    )


@pointwise_backward.register_fake
def _(grad, q, k, v, bias, keep, tau, offset, gain, scale, h, causal, tile, needs_bias, *rest):  # type: ignore[no-untyped-def]
    like = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    others = [bias if needs_bias else None, tau, offset, gain]
    return like + [q.new_empty(0) if x is None else x.new_empty(x.shape) for x in others]


def _save_pointwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8], *inputs[13:15])
    ctx.rest, ctx.window = (*inputs[8:11], inputs[12]), inputs[15]


def _pointwise_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors[:8]
    needs_bias = bool(ctx.needs_input_grad[3])
    dq, dk, dv, dbias, dtau, doffset, dgain = torch.ops.attnpass.pointwise_backward(
        grad, *saved, *ctx.rest, needs_bias, *ctx.saved_tensors[8:], ctx.window
    )
    rest = (dtau, doffset, dgain)
    return (
        *(dq, dk, dv, dbias if needs_bias else None, None),
        *(x if y is not None else None for x, y in zip(rest, saved[5:], strict=True)),
        *[None] * 8,
    )


pointwise.register_autograd(_pointwise_grad, setup_context=_save_pointwise)


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

    Args:
        q: ``[B, H, T, d]``; ``k``, ``v`` ``[B, H, S, d]`` (repeat grouped heads first).
        k: keys. v: values. keep: bool ``[B|1, 1, 1, S]``. gain: float32 ``[1, H, 1, d]``.
        causal: cumulative sum (T = S).
        eps: floor of the squared norm over all H*d features. tile: ``Tile.as_list()``.
    """
    return _run("hydra", q, q, k, v, keep, gain, causal, eps, tile)  # type: ignore[no-any-return]


@hydra.register_fake
def _(q, k, v, keep, gain, causal, eps, tile):  # type: ignore[no-untyped-def]
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
    """Gradients of q, k, v, gain; an empty tensor where there is none."""
    return _run("hydra_backward", q, grad, q, k, v, keep, gain, causal, eps, tile)  # type: ignore[no-any-return]


@hydra_backward.register_fake
def _(grad, q, k, v, keep, gain, causal, eps, tile):  # type: ignore[no-untyped-def]
    like = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    return [*like, q.new_empty(0) if gain is None else gain.new_empty(gain.shape)]


def _save_hydra(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _hydra_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    dq, dk, dv, dgain = torch.ops.attnpass.hydra_backward(grad, *saved, *ctx.rest)
    return dq, dk, dv, None, None if saved[4] is None else dgain, None, None, None


hydra.register_autograd(_hydra_grad, setup_context=_save_hydra)
