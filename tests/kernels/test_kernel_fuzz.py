"""Random calls of the kernels, any shape, stride, mask, tile and threads, against float64.

The other tests take one feature at a time; these combine them.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
import triton
from torch import Tensor

from attnpass.kernels import reference
from attnpass.kernels.activations import H
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.cpu import pointwise_launch
from attnpass.kernels.gpu import pointwise_backward_triton_launch, pointwise_triton_launch
from attnpass.kernels.tile import Tile

NAMES = ("q", "k", "v", "bias", "keep", "tau", "offset", "gain")
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
"""Largest error over the largest entry; a gradient of an h that grows gets six times that."""


class Draw:
    """Random call arguments from one seed."""

    def __init__(self, seed: int, most: int = 300) -> None:
        self.pick, self.most = random.Random(seed), most
        torch.manual_seed(seed)

    def often(self, share: float = 0.5) -> bool:
        return self.pick.random() < share

    def strided(self, *shape: int) -> Tensor:
        """Contiguous, permuted, cut out of a larger one, or expanded."""
        kind = self.pick.choice(["plain", "permuted", "cut", "expanded"])
        if kind == "permuted":
            order = self.pick.sample(range(len(shape)), len(shape))
            x = torch.randn([shape[i] for i in order])
            return x.permute([order.index(i) for i in range(len(shape))])
        if kind == "cut":
            x = torch.randn([n + self.pick.randint(0, 3) for n in shape])
            for i, n in enumerate(shape):
                x = x.narrow(i, x.shape[i] - n, n)
            return x
        if kind == "expanded":
            one = self.pick.randrange(len(shape))
            return torch.randn([1 if i == one else n for i, n in enumerate(shape)]).expand(shape)
        return torch.randn(shape)

    def broadcast(self, *shape: int) -> tuple[int, ...]:
        return tuple(n if self.often(0.6) else 1 for n in shape)

    def length(self) -> int:
        few, many = self.pick.randint(1, 40), self.pick.randint(1, self.most)
        return self.pick.choice([0, 1, 2, few, few, many])

    def call(self) -> tuple[dict[str, Tensor | None], Tensor, tuple, torch.dtype]:
        """The tensors, the gradient of the output, (scale, h, causal, tile), and the dtype."""
        dtype = self.pick.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
        g = self.pick.randint(1, 3)
        b, h, t = self.pick.randint(1, 3), g * self.pick.randint(1, 3), self.length()
        s = t if self.often() else self.length()
        d = self.pick.choice([1, 3, 8, 16, 17, 31, 32, 64, 65])
        dv = self.pick.choice([d, 1, 5, 16, 33])
        bias = keep = None
        if self.often():
            bias = self.strided(*self.broadcast(b, h, t, s))
            bias = bias.masked_fill(torch.rand(bias.shape) < 0.3, -math.inf)
            bias = bias.to(self.pick.choice([dtype, torch.float32]))
        if self.often():
            keep = self.strided(*self.broadcast(b, h, t, s)) < self.pick.choice([-1.0, 0.0, 1.0])
        rows = [
            torch.randn(*self.broadcast(b, h, t), 1) if self.often() else None for _ in range(2)
        ]
        tensors = (
            *(self.strided(b, h, t, d).to(dtype), self.strided(b, g, s, d).to(dtype)),
            *(self.strided(b, g, s, dv).to(dtype), bias, keep),
            *(torch.rand(h) + 0.5 if self.often() else None, *rows),
        )
        tile = [
            self.pick.choice([1, 7, 16, 64, 128]),
            self.pick.choice([1, 32, 64, 100, 256]),
            *(4, 2, self.pick.choice([1, 2, 4])),
        ]
        scale = self.pick.choice([d**-0.5, 1.0, 0.1])
        rest = (scale, self.pick.choice(tuple(H)), self.often(0.4), tile)
        return (
            dict(zip(NAMES, tensors, strict=True)),
            self.strided(b, h, t, dv).to(dtype),
            rest,
            dtype,
        )


def far(got: Tensor, want: Tensor) -> float:
    """The largest error over the largest entry."""
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0.0
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-3))


@pytest.mark.parametrize("seed", range(120))
def test_random_calls(seed):
    draw = Draw(seed)
    tensors, grad, (scale, h, causal, tile), dtype = draw.call()
    before = torch.get_num_threads()
    torch.set_num_threads(draw.pick.choice([1, 2, 3]))
    try:
        call = PointwiseCall(*tensors.values(), scale, h, causal, Tile.from_list(tile))
        out = pointwise_launch.pointwise(call)
        found = pointwise_launch.pointwise_backward(grad, call, True)
    finally:
        torch.set_num_threads(before)
    compare(tensors, grad, (scale, h, causal), dtype, out, found)


def compare(tensors, grad, rest, dtype, out, found, more=None):
    """Forward and gradients against float64; ``more``: another bias and mask on top."""
    scale, h, causal = rest
    wide = {
        n: x if x is None or x.dtype == torch.bool else x.detach().double().requires_grad_()
        for n, x in tensors.items()
    }
    bias, keep = more or (None, None)
    bias = wide["bias"] if bias is None else bias if wide["bias"] is None else wide["bias"] + bias
    keep = wide["keep"] if keep is None else keep if wide["keep"] is None else wide["keep"] & keep
    given = wide | {"bias": bias, "keep": keep}
    want = reference.pointwise(*given.values(), scale=scale, h=h, causal=causal)
    assert far(out, want.detach()) <= ALLOWED[dtype]
    leaves = {n: x for n, x in wide.items() if x is not None and n != "keep"}
    wanted = torch.autograd.grad(want, list(leaves.values()), grad.double())
    for name, gradient in zip(leaves, wanted, strict=True):
        assert far(getattr(found, name), gradient) <= 6 * ALLOWED[dtype], name


# slow: up to ten seconds a call under the interpreter
@pytest.mark.slow
@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="tensors of a CPU")
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("seed", range(30))
def test_random_calls_of_triton(seed):
    draw = Draw(1000 + seed, most=70)
    tensors, grad, (scale, h, causal, _), dtype = draw.call()
    q, k = tensors["q"], tensors["k"]
    (b, heads, t, _), s = q.shape, k.shape[2]
    window = draw.pick.choice([0, 0, 1, 5, 20])
    slopes = torch.rand(heads) if draw.often(0.3) else None
    lengths = torch.randint(0, s + 1, (b,)) if draw.often(0.3) else None
    tile = Tile(
        block_m=draw.pick.choice([16, 32]),
        block_n=draw.pick.choice([16, 32]),
        descriptors=draw.pick.choice([0, 1]),
        persistent=draw.pick.choice([0, 1]),
    )
    given = (*tensors.values(), scale, h, causal, tile)
    call = PointwiseCall(*given, slopes, lengths, window)
    out = pointwise_triton_launch.pointwise(call)
    found = pointwise_backward_triton_launch.pointwise_backward(grad, call, True)
    at = torch.arange(t)[:, None] - torch.arange(s)
    keep = at.abs() < window if window else torch.ones(t, s, dtype=torch.bool)
    if lengths is not None:
        keep = keep & (torch.arange(s) < lengths.view(-1, 1, 1, 1))
    bias = None if slopes is None else -slopes.double().view(-1, 1, 1) * at.abs()
    compare(tensors, grad, (scale, h, causal), dtype, out, found, (bias, keep))
