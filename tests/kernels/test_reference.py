"""The oracle itself, against loops over single numbers."""

from __future__ import annotations

import math

import problems
import pytest
import torch
from problems import CASES
from tolerance import assert_near

from attnpass.kernels import reference

SCALE = 0.6


def number(x, *index):
    """One entry of a tensor that broadcasts to four axes."""
    x = x.view((1,) * (4 - x.dim()) + x.shape)
    return float(
        x.detach()[tuple(0 if n == 1 else i for i, n in zip(index, x.shape, strict=True))]
    )


def logit(p, b, h, t, s):
    """One logit before tau and offset, or None where the position is not attended to."""
    group = h // (p.case.h // p.case.g)
    if p.case.causal and s > t or p.keep is not None and not number(p.keep, b, h, t, s):
        return None
    bias = 0.0 if p.bias is None else number(p.bias, b, h, t, s)
    if bias == -math.inf:
        return None
    product = p.q[b, h, t].detach().double() @ p.k[b, group, s].detach().double()
    return float(product) * SCALE + bias


@pytest.mark.parametrize("name", ["plain", "grouped", "causal, more keys", "all"])
def test_pointwise(name):
    p = problems.problem(CASES[name])
    got = reference.pointwise(*p.inputs(), scale=SCALE, h="gelu", causal=p.case.causal)
    want = torch.zeros(got.shape, dtype=torch.float64)
    for b in range(p.case.b):
        for h in range(p.case.h):
            for t in range(p.case.t):
                for s in range(p.case.s):
                    x = logit(p, b, h, t, s)
                    if x is None:
                        continue
                    x = x if p.tau is None else x * float(p.tau[h].detach())
                    x = x if p.offset is None else x + number(p.offset, b, h, t, 0)
                    weight = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
                    value = p.v[b, h // (p.case.h // p.case.g), s].detach().double()
                    want[b, h, t] += weight * value
                if p.gain is not None:
                    want[b, h, t] *= number(p.gain, b, h, t, 0)
    assert_near(got, want)


@pytest.mark.parametrize("fill", [-1e4, -math.inf])
@pytest.mark.parametrize("name", ["plain", "causal", "keep [B, 1, T, S]", "bias [H, T, S]"])
def test_softmax(name, fill):
    p = problems.problem(CASES[name].but(empty_row=False))
    inputs = (p.q, p.k, p.v, p.bias, p.keep)
    got = reference.softmax(*inputs, scale=SCALE, causal=p.case.causal, fill=fill)
    for b in range(p.case.b):
        for h in range(p.case.h):
            for t in range(p.case.t):
                found = [logit(p, b, h, t, s) for s in range(p.case.s)]
                row = torch.tensor([fill if x is None else x for x in found]).double()
                weights = (row - row.max()).exp()
                want = weights / weights.sum() @ p.v[b, h].detach().double()
                torch.testing.assert_close(got[b, h, t].detach(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_hydra(causal):
    q, k, v = torch.randn(3, 2, 3, 5, 4).double()
    keep = torch.tensor([[True, True, False, True, True], [True] * 5]).view(2, 1, 1, 5)
    got = reference.hydra(q, k, v, keep, causal=causal, eps=1e-6)
    for b in range(2):
        for t in range(5):
            total = torch.zeros(3, 4).double()
            for s in range(t + 1 if causal else 5):
                if keep[b, 0, 0, s]:
                    total += k[b, :, s] / k[b, :, s].norm() * v[b, :, s]
            assert_near(got[b, :, t], q[b, :, t] / q[b, :, t].norm() * total)
