"""Launches the Triton kernels of hydra: padded features, chunks of tokens, their starts.

Shapes: B batch, H query heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnpass.kernels.gpu import hydra_triton
from attnpass.kernels.gpu.launch import Strides, block_count, constant, programs, spread
from attnpass.kernels.gpu.limits import power
from attnpass.kernels.shapes import heads_last


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
        self.keep, self.keep_st = spread(flags, (b, 1, 1, s))
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
        blocks = block_count(x.shape[2], self.form.rows)
        steps = max(1, blocks * self.b // (4 * programs(x)))
        return (self.b, block_count(blocks, steps)), steps

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
            constant(self.form),
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
    out = heads_last(q, q.shape[3])
    if out.numel() == 0:
        return out
    call = _Tokens(q, k, keep, gain, tile[2])
    before, before_st = _starts(call.sums(k, v, eps, keys=True), causal)
    grid, steps = call.grid(q)
    strides = (q.stride(), k.stride(), v.stride(), call.keep_st, before_st, out.stride())
    hydra_triton.hydra_apply[grid](
        *(q, k, v, call.keep, call.gain, before, out, *strides, q.shape[2], steps, eps),
        constant(call.form._replace(causal=causal)),
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
        constant(form),
        **call.options,
    )
    grid, steps = call.grid(k)
    outputs = (dk.stride(), dv.stride())
    hydra_triton.hydra_keys[grid](
        *(*inputs, after, dk, dv, *strides, after_st, *outputs, k.shape[2], steps, eps),
        constant(form),
        **call.options,
    )
    if dgain is None or gain is None:
        return [dq, dk, dv, q.new_empty(0)]
    return [dq, dk, dv, dgain.sum((0, 1)).view(gain.shape).to(gain.dtype)]
