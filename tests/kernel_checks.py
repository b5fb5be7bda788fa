"""What the tests of the kernels share: calls of every implementation, checked in float64."""

from __future__ import annotations

import problems  # noqa: F401
import torch
from problems import Problem
from tolerance import GRADIENT, assert_near
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnpass.kernels import ops, reference, torch_whole
from attnpass.kernels.call import HydraCall, PointwiseCall
from attnpass.kernels.tile import Tile

SCALE = 0.6
H = tuple(reference.H_FUNCTIONS)
LOW = (torch.bfloat16, torch.float16)


def run(p: Problem, h: str, which: str) -> Tensor:
    if which == "fused":
        tiles = [list(p.case.tile)] * 2
        return ops.pointwise(*p.inputs(), SCALE, h, p.case.causal, *tiles, *p.positions())
    if which == "aten":
        return torch_whole.pointwise(
            PointwiseCall(*p.inputs(), SCALE, h, p.case.causal, Tile("aten"))
        )
    return reference.pointwise(*p.spelled(), scale=SCALE, h=h, causal=p.case.causal)


def gradients(out: Tensor, p: Problem) -> dict[str, Tensor]:
    leaves = p.leaves()
    found = torch.autograd.grad(out, list(leaves.values()), p.grad.to(out.dtype))
    return dict(zip(leaves, found, strict=True))


def check(p: Problem, h: str, which: str, compute: torch.dtype | None = None) -> None:
    out = run(p, h, which)
    assert out.dtype == p.q.dtype
    want_problem = p.double()
    want = run(want_problem, h, "reference")
    assert_near(out, want, compute=compute)
    assert bool((out[p.masked] == 0).all())
    got, wanted = gradients(out, p), gradients(want, want_problem)
    for name, x in p.leaves().items():
        assert got[name].dtype == x.dtype, name
        assert_near(got[name], wanted[name], terms=GRADIENT, compute=compute, name=f"d{name}")


HYDRA = {
    "plain": (2, 3, 6, 6, 4),
    "one token": (1, 1, 1, 1, 3),
    "odd sizes": (3, 3, 13, 13, 5),
    "cross": (2, 2, 5, 9, 4),
    "cross, fewer keys": (2, 2, 9, 5, 4),
    "one vector of 16": (2, 3, 6, 6, 16),
    "three vectors of 16": (1, 2, 6, 6, 48),
    "no queries": (2, 2, 0, 5, 4),
    "no keys": (2, 2, 5, 0, 4),
    "empty batch": (0, 2, 5, 5, 4),
}


def hydra_inputs(name, dtype=torch.float32, transposed=False, seed=0):
    b, h, t, s, d = HYDRA[name]
    draw = torch.Generator().manual_seed(seed)

    def heads(n):
        if transposed:
            x = torch.randn(b, n, h, d, generator=draw).transpose(1, 2)
        else:
            x = torch.randn(b, h, n, d, generator=draw)
        return x.to(dtype).requires_grad_()

    keep = torch.rand(b, 1, 1, s, generator=draw) < 0.6
    grad = torch.randn(b, h, t, d, generator=draw).to(dtype)
    return heads(t), heads(s), heads(s), keep, grad


def run_hydra(which, q, k, v, keep, causal, eps, tile=(4, 4, 4, 2, 1), gain=None):
    if which == "fused":
        return ops.hydra(q, k, v, keep, gain, causal, eps, list(tile))
    if which == "aten":
        return torch_whole.hydra(HydraCall(q, k, v, keep, gain, causal, eps, Tile("aten")))
    return reference.hydra(q, k, v, keep, gain, causal=causal, eps=eps)


def check_hydra(which, q, k, v, keep, grad, causal, eps=1e-6, tile=(4, 4, 4, 2, 1)):
    draw = torch.Generator().manual_seed(1)
    gain = torch.randn(1, q.shape[1], 1, q.shape[3], generator=draw)
    gain = gain.double() if q.dtype == torch.float64 else gain
    leaves = (q, k, v, gain.requires_grad_())
    out = run_hydra(which, q, k, v, keep, causal, eps, tile, gain)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    want = run_hydra("reference", *wide[:3], keep, causal, eps, gain=wide[3])
    assert_near(out, want)
    got = torch.autograd.grad(out, leaves, grad.to(out.dtype))
    wanted = torch.autograd.grad(want, wide, grad.double())
    for name, x, g, w in zip(("q", "k", "v", "gain"), leaves, got, wanted, strict=True):
        assert g.dtype == x.dtype
        assert_near(g, w, terms=GRADIENT, name=f"d{name}")


class Seen(TorchDispatchMode):
    """Names of the attnpass operators that were called."""

    def __init__(self):
        super().__init__()
        self.names, self.tiles = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "attnpass":
            self.names.append(func._schema.name)
            self.tiles.append(list(args[-2:]))
        return func(*args, **(kwargs or {}))


def softmax(p: Problem) -> tuple[Tensor, Tensor]:
    """Exact softmax of a problem and its log-sum-exp; 0 and -inf in rows without a key."""
    k, v = (x.repeat_interleave(p.case.h // p.case.g, 1) for x in (p.k, p.v))
    s = torch.einsum("bhtd,bhsd->bhts", p.q, k) * SCALE
    s = s if p.bias is None else s + p.bias
    s = s if p.keep is None else s.masked_fill(~p.keep, -torch.inf)
    if p.case.causal:
        s = s.masked_fill(torch.ones(s.shape[-2:]).tril() == 0, -torch.inf)
    none = (s == -torch.inf).all(-1, keepdim=True)
    s = s.masked_fill(none, 0.0)
    weights, lse = s.softmax(-1).masked_fill(none, 0.0), s.logsumexp(-1)
    return weights @ v, lse.masked_fill(none.squeeze(-1), -torch.inf)


def check_softmax(p: Problem, compute: torch.dtype | None = None) -> None:
    """Output, log-sum-exp and gradients of both; gradients together, as one of them may be 0."""
    tiles = [list(p.case.tile)] * 2
    given = (p.q, p.k, p.v, p.bias, p.keep)
    got = ops.softmax(*given, SCALE, p.case.causal, *tiles)
    wide = p.double()
    want = softmax(wide)
    assert got[0].dtype == p.q.dtype
    assert_near(got[0], want[0], compute=compute)
    assert_near(got[1], want[1], compute=compute)

    def gradient(out: Tensor, lse: Tensor, q: Problem) -> Tensor:
        leaves = [x for x in (q.q, q.k, q.v, q.bias) if x is not None]
        total = (out * p.grad.to(out.dtype)).sum() + lse.masked_fill(lse == -torch.inf, 0.0).sum()
        return torch.cat([x.flatten() for x in torch.autograd.grad(total, leaves)])

    # the mean of a row's gradients comes from the rounded output
    low = p.q.dtype if p.q.dtype in LOW else None
    assert_near(gradient(*got, p), gradient(*want, wide), terms=2 * GRADIENT, compute=low)
