"""Small attention inputs for the kernel tests: every feature once, and its sizes at the edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NAMES = ("q", "k", "v", "bias", "tau", "offset", "gain")
"""The inputs that take gradients, in the order of ``Problem.leaves``."""


@dataclass(frozen=True)
class Case:
    """What one problem looks like; ``keep``, ``bias`` and ``offset`` are shapes or None."""

    b: int = 2
    h: int = 2
    g: int = 2
    t: int = 6
    s: int = 6
    d: int = 4
    dv: int = 4
    keep: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    tau: bool = False
    offset: tuple[int, ...] | None = None
    gain: tuple[int, ...] | None = None
    causal: bool = False
    transposed: bool = False
    inf_bias: bool = False
    permuted_bias: bool = False
    empty_row: bool = False
    slopes: bool = False
    lengths: tuple[int, ...] | None = None
    window: int = 0
    tile: tuple[int, ...] = (4, 3, 4, 2, 1)

    def but(self, **changes: Any) -> Case:
        """This case with some fields changed."""
        return replace(self, **changes)


CASES: dict[str, Case] = {
    "plain": Case(),
    "one query, one key": Case(b=1, h=1, g=1, t=1, s=1, d=1, dv=1),
    "no queries": Case(t=0, tau=True, offset=(1, 2, 1, 1)),
    "no keys": Case(s=0, tau=True, offset=(1, 2, 1, 1)),
    "empty batch": Case(b=0),
    "odd sizes": Case(b=3, h=3, g=3, t=13, s=11, d=5, dv=7, tau=True, offset=(1, 3, 1, 1)),
    "tile does not divide": Case(t=17, s=17, causal=True, tile=(5, 7, 4, 2, 1)),
    "tile larger than all": Case(t=5, s=5, causal=True, tile=(128, 512, 4, 2, 1)),
    "transposed": Case(t=7, s=7, h=4, g=4, transposed=True, tau=True),
    "grouped": Case(h=4, g=2, t=5, s=7, transposed=True),
    "one kv head": Case(h=3, g=1, t=5, s=7),
    "cross": Case(t=5, s=9),
    "value dim": Case(dv=9, d=3),
    "causal": Case(t=9, s=9, causal=True),
    "causal, more queries": Case(t=9, s=4, causal=True),
    "causal, more keys": Case(t=4, s=9, causal=True),
    "keep [S]": Case(keep=(6,)),
    "keep [T, S]": Case(keep=(6, 6)),
    "keep [B, 1, 1, S]": Case(keep=(2, 1, 1, 6), causal=True, empty_row=True),
    "keep [1, 1, T, S]": Case(keep=(1, 1, 6, 6), empty_row=True),
    "keep [B, 1, T, S]": Case(keep=(2, 1, 6, 6), empty_row=True),
    "keep [1, H, 1, S]": Case(keep=(1, 2, 1, 6)),
    "keep [B, 1, T, 1]": Case(keep=(2, 1, 6, 1), empty_row=True),
    "keep [B, H, T, S]": Case(keep=(2, 2, 6, 6), empty_row=True, tau=True, offset=(1, 2, 1, 1)),
    "bias [S]": Case(bias=(6,), tau=True),
    "bias [H, T, S]": Case(bias=(2, 6, 6), offset=(1, 2, 1, 1)),
    "bias [1, H, T, S]": Case(bias=(1, 2, 6, 6), inf_bias=True, empty_row=True),
    "bias [B, 1, 1, S]": Case(bias=(2, 1, 1, 6), inf_bias=True, tau=True),
    "bias [B, H, T, S]": Case(bias=(2, 2, 6, 6), inf_bias=True, tau=True, offset=(1, 2, 1, 1)),
    "bias permuted": Case(bias=(1, 2, 6, 6), permuted_bias=True, tau=True, offset=(1, 2, 1, 1)),
    "offset [1, 1, 1, 1]": Case(offset=(1, 1, 1, 1)),
    "offset [B, 1, T, 1]": Case(offset=(2, 1, 6, 1), tau=True),
    "offset [B, H, T, 1]": Case(offset=(2, 2, 6, 1)),
    "gain [1, H, 1, 1]": Case(gain=(1, 2, 1, 1)),
    "gain [B, 1, T, 1]": Case(gain=(2, 1, 6, 1), causal=True),
    "all": Case(
        h=4,
        g=2,
        t=7,
        s=9,
        dv=5,
        keep=(2, 1, 7, 9),
        bias=(1, 4, 7, 9),
        tau=True,
        offset=(1, 4, 7, 1),
        gain=(1, 4, 7, 1),
        causal=True,
        transposed=True,
        inf_bias=True,
        empty_row=True,
    ),
}


POSITIONS: dict[str, Case] = {
    "window": Case(t=9, s=11, window=3),
    "window of one": Case(t=9, s=9, window=1),
    "causal window": Case(t=13, s=13, window=4, causal=True, tau=True),
    "window, fewer keys": Case(t=11, s=4, window=2, causal=True, empty_row=True),
    "slopes": Case(slopes=True, tau=True, t=5, s=8),
    "slopes, causal": Case(slopes=True, causal=True, offset=(1, 2, 1, 1)),
    "lengths": Case(b=3, lengths=(6, 0, 4), offset=(1, 2, 1, 1), gain=(1, 2, 1, 1)),
    "all positions": Case(
        h=4,
        g=2,
        t=11,
        s=11,
        dv=5,
        keep=(2, 1, 11, 11),
        bias=(1, 4, 11, 11),
        tau=True,
        offset=(1, 4, 11, 1),
        gain=(1, 4, 11, 1),
        inf_bias=True,
        slopes=True,
        lengths=(9, 4),
        window=5,
        causal=True,
        transposed=True,
    ),
}
"""What depends on the positions of query and key; plain ATen has no such terms."""


@dataclass
class Problem:
    """Tensors of one case; ``masked`` are the rows ``[B, H, T]`` without any kept key."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    keep: Tensor | None
    tau: Tensor | None
    offset: Tensor | None
    gain: Tensor | None
    grad: Tensor
    masked: Tensor
    case: Case
    slopes: Tensor | None = None
    lengths: Tensor | None = None

    def inputs(self) -> tuple[Tensor | None, ...]:
        return self.q, self.k, self.v, self.bias, self.keep, self.tau, self.offset, self.gain

    def positions(self) -> tuple[Tensor | None, Tensor | None, int]:
        return self.slopes, self.lengths, self.case.window

    def spelled(self) -> tuple[Tensor | None, ...]:
        """The inputs with slopes, lengths and window written as a bias and a mask."""
        bias = self.bias
        if self.slopes is not None:
            far = (torch.arange(self.case.t)[:, None] - torch.arange(self.case.s)).abs()
            alibi = -self.slopes.double().view(-1, 1, 1) * far
            bias = alibi if bias is None else bias + alibi
        keep = _positions_kept(self.case)
        if keep is not None and self.keep is not None:
            keep = keep & self.keep
        keep = self.keep if keep is None else keep
        return self.q, self.k, self.v, bias, keep, self.tau, self.offset, self.gain

    def leaves(self) -> dict[str, Tensor]:
        found = {n: getattr(self, n) for n in NAMES}
        return {n: x for n, x in found.items() if x is not None}

    def double(self) -> Problem:
        """The same numbers as fresh float64 leaves."""
        wide = {n: _leaf(x.detach().double()) for n, x in self.leaves().items()}
        return replace(self, **wide)


def _positions_kept(case: Case) -> Tensor | None:
    """What window and lengths keep, ``[B|1, 1, T, S]``."""
    keep = torch.ones(1, 1, case.t, case.s, dtype=torch.bool)
    if case.window:
        for t in range(case.t):
            for s in range(case.s):
                keep[0, 0, t, s] = abs(t - s) < case.window
    if case.lengths is not None:
        keep = torch.cat([keep] * case.b)
        for b, n in enumerate(case.lengths):
            keep[b, :, :, n:] = False
    return keep if case.window or case.lengths is not None else None


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def problem(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Problem:
    """Random tensors of ``case``; q, k, v and bias in ``dtype``, tau and offset float32."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def heads(n: int, length: int, width: int) -> Tensor:
        if case.transposed:
            return normal(case.b, length, n, width).to(dtype).transpose(1, 2)
        return normal(case.b, n, length, width).to(dtype)

    bias = keep = None
    full = torch.ones(case.b, case.h, case.t, case.s, dtype=torch.bool)
    kept = full.tril() if case.causal else full
    if case.bias is not None:
        if case.permuted_bias:
            n, h, t, s = case.bias
            bias = normal(n, t, s, h).permute(0, 3, 1, 2)
        else:
            bias = normal(*case.bias)
        if case.inf_bias:
            bias = bias.masked_fill(torch.rand(case.bias, generator=draw) < 0.3, -math.inf)
            if case.empty_row:
                bias[..., 1, :] = -math.inf
        bias = bias.to(dtype)
        kept = kept & (bias != -math.inf)
    if case.keep is not None:
        keep = torch.rand(case.keep, generator=draw) < 0.6
        if case.empty_row:
            keep[..., -1, :] = False
        kept = kept & keep
    near = _positions_kept(case)
    kept = kept if near is None else kept & near
    return Problem(
        q=_leaf(heads(case.h, case.t, case.d)),
        k=_leaf(heads(case.g, case.s, case.d)),
        v=_leaf(heads(case.g, case.s, case.dv)),
        bias=None if bias is None else _leaf(bias),
        keep=keep,
        tau=_leaf((0.5 + torch.rand(case.h, generator=draw)).to(small)) if case.tau else None,
        offset=None if case.offset is None else _leaf(normal(*case.offset).to(small)),
        gain=None if case.gain is None else _leaf(normal(*case.gain).to(small)),
        grad=normal(case.b, case.h, case.t, case.dv).to(dtype),
        masked=~kept.any(-1),
        case=case,
        slopes=torch.rand(case.h, generator=draw) if case.slopes else None,
        lengths=None if case.lengths is None else torch.tensor(case.lengths),
    )
