"""How far a result may be from float64: in one place, each term with its reason.

A result of dtype ``x`` is compared with the float64 result of the same (already rounded) inputs:

    |got - want| <= OUTPUT[x] * |want| + terms * COMPUTE[c] * largest |want|

``OUTPUT``: the result is rounded once to its dtype, half an ulp; a gain applied after the kernel
rounds a second time. One eps covers both, no more.

``COMPUTE``: the design computes logits, h, norms and token sums in float32 (float64 for float64
inputs), so low precision inputs get the float32 term, not their own. float32 eps is 1.2e-7; a dot
product of a few dozen terms, its scale, h and the sum over keys make about 2e-6 of the largest
entry (measured: see below). The sums cancel, hence the largest entry, not each one.

``terms``: how many such stages follow each other (a gradient is two matrix products on top of the
forward: 4). Only a path that the design lets round its weights to the input dtype (a GPU dot, an
eager softmax) passes ``compute`` = that dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRADIENT = 4.0
"""Stages of a gradient: the forward's recomputation, two products, a reduction."""

OUTPUT = {
    torch.float64: 0.0,
    torch.float32: torch.finfo(torch.float32).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float16: torch.finfo(torch.float16).eps,
}

COMPUTE = {
    # numpy, torch and the kernels order their sums differently: some hundred eps of 2.2e-16
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float16: torch.finfo(torch.float16).eps,
}


def assert_near(
    got: Tensor,
    want: Tensor,
    *,
    terms: float = 1.0,
    compute: torch.dtype | None = None,
    name: str = "result",
) -> None:
    """``got`` (any dtype) against ``want`` (float64): same shape, same NaN and inf, and near."""
    assert want.dtype == torch.float64, "the reference must be float64"
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} != {tuple(want.shape)}"
    if want.numel() == 0:
        return
    got64 = got.detach().double()
    want = want.detach()
    assert torch.equal(got64.isfinite(), want.isfinite()), (
        f"{name}: {int((~got64.isfinite()).sum())} entries not finite, "
        f"{int((~want.isfinite()).sum())} expected"
    )
    finite = want.isfinite()
    got64, want = got64[finite], want[finite]
    if want.numel() == 0:
        return
    if compute is None:
        compute = torch.float64 if got.dtype == torch.float64 else torch.float32
    error = (got64 - want).abs()
    allowed = OUTPUT[got.dtype] * want.abs() + terms * COMPUTE[compute] * want.abs().max()
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"{name}: {got64[worst]:.9g} for {want[worst]:.9g}, off by {error[worst]:.3g}, "
        f"allowed {allowed[worst]:.3g}"
    )
