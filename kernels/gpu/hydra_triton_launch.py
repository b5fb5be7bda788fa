"""Launches the Triton kernels of hydra: padded features, chunks of tokens, sums before a chunk.

Shapes: B batch, H heads, T queries, S keys, d head dim, C chunks of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnpass.kernels.call import HydraCall, HydraGradients
from attnpass.kernels.gpu.hydra_triton import (
    Form,
    hydra_apply,
    hydra_keys,
    hydra_queries,
    hydra_sums,
)
from attnpass.kernels.gpu.launch import Strides, block_count, constant, programs, spread
from attnpass.kernels.gpu.limits import check_powers, power
from attnpass.kernels.shapes import heads_last


class _Tokens:
    """The arguments that every kernel of one call of hydra shares."""

    def __init__(self, call: HydraCall) -> None:
        check_powers(call.tile, "warps")
        (b, heads, _, d), s = call.q.shape, call.k.shape[2]
        self.b, self.features = b, heads * d
        block = power(self.features)
        # as many tokens as their features fit the registers of the program, two at least
        rows = max(2, 1024 * call.tile.warps // block)
        warps = max(call.tile.warps, min(16, rows * block // 2048))
        self.options = {"num_warps": warps, "enable_fp_fusion": True}
        flags = None if call.keep is None else call.keep.view(torch.uint8)
        self.keep, self.keep_st = spread(flags, (b, 1, 1, s))
        self.gain = None if call.gain is None else call.gain.float().contiguous()
        self.eps, self.causal = call.eps, call.causal
        self.form = Form(
            features=self.features,
            block=block,
            d=d,
            rows=rows,
            causal=False,
            keep=call.keep is not None,
            gain=call.gain is not None,
        )

    def grid(self, x: Tensor) -> tuple[tuple[int, int], int]:
        """Items by chunks for the tokens of ``x``, and the steps of a chunk."""
        blocks = block_count(x.shape[2], self.form.rows)
        steps = max(1, blocks * self.b // (4 * programs(x)))
        return (self.b, block_count(blocks, steps)), steps

    def empty_sums(self, x: Tensor) -> Tensor:
        """Memory for one sum per chunk of the tokens of ``x``: ``[B, C, H * d]`` in float32."""
        shape = (self.b, self.grid(x)[0][1], self.features)
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    def sums(self, x: Tensor, y: Tensor, *, keys: bool) -> Tensor:
        """``[B, C, H * d]``: the sum of ``x^ * y`` per chunk, of kept tokens if these are keys."""
        (grid, steps), out = self.grid(x), self.empty_sums(x)
        keep = self.keep if keys else None
        strides = (x.stride(), y.stride(), self.keep_st)
        hydra_sums[grid](
            *(x, y, keep, out, *strides, x.shape[2], steps, self.eps),
            constant(self.form),
            keys and self.form.keep,
            **self.options,
        )
        return out

    def starts(self, sums: Tensor, reverse: bool = False) -> tuple[Tensor, Strides]:
        """The sum that each chunk starts from: all tokens, or those before (after) the chunk."""
        if not self.causal:
            total = sums.sum(1, keepdim=True)
            return total, (total.stride(0), 0)
        zero = torch.zeros_like(sums[:, :1])
        if reverse:
            out = torch.cat([sums[:, 1:].flip(1).cumsum(1).flip(1), zero], 1)
        else:
            out = torch.cat([zero, sums[:, :-1].cumsum(1)], 1)
        return out, out.stride()[:2]


def hydra(call: HydraCall) -> Tensor:
    """``[B, H, T, d]``; see ``HydraCall``."""
    q, k, v = call.q, call.k, call.v
    out = heads_last(q, q.shape[3])
    if out.numel() == 0:
        return out
    tokens = _Tokens(call)
    before, before_st = tokens.starts(tokens.sums(k, v, keys=True))
    grid, steps = tokens.grid(q)
    strides = (q.stride(), k.stride(), v.stride(), tokens.keep_st, before_st, out.stride())
    hydra_apply[grid](
        *(q, k, v, tokens.keep, tokens.gain, before, out, *strides, q.shape[2], steps, call.eps),
        constant(tokens.form._replace(causal=call.causal)),
        **tokens.options,
    )
    return out


def hydra_backward(grad: Tensor, call: HydraCall) -> HydraGradients:
    """The gradients for ``grad [B, H, T, d]``; see ``HydraCall``."""
    q, k, v, gain = call.q, call.k, call.v, call.gain
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    if 0 in q.shape or k.shape[2] == 0:
        dgain = None if gain is None else torch.zeros_like(gain)
        return HydraGradients(dq.zero_(), dk.zero_(), dv.zero_(), dgain)
    tokens = _Tokens(call)
    form = constant(tokens.form._replace(causal=call.causal))
    before, before_st = tokens.starts(tokens.sums(k, v, keys=True))
    after, after_st = tokens.starts(tokens.sums(q, grad, keys=False), reverse=True)
    inputs = (grad, q, k, v, tokens.keep, tokens.gain)
    strides = (grad.stride(), q.stride(), k.stride(), v.stride(), tokens.keep_st)
    dgain = None if gain is None else tokens.empty_sums(q)
    grid, steps = tokens.grid(q)
    ends = (q.shape[2], steps, call.eps)
    hydra_queries[grid](
        *(*inputs, before, dq, dgain, *strides, before_st, dq.stride(), *ends),
        form,
        **tokens.options,
    )
    grid, steps = tokens.grid(k)
    ends = (k.shape[2], steps, call.eps)
    hydra_keys[grid](
        *(*inputs, after, dk, dv, *strides, after_st, dk.stride(), dv.stride(), *ends),
        form,
        **tokens.options,
    )
    if dgain is None or gain is None:
        return HydraGradients(dq, dk, dv, None)
    return HydraGradients(dq, dk, dv, dgain.sum((0, 1)).view(gain.shape).to(gain.dtype))
