"""Exact softmax by the C++ kernel and by plain torch, against float64."""

from __future__ import annotations

import problems
import pytest
import torch
import torch.nn.functional as F
from kernel_checks import LOW, SCALE, check_softmax
from problems import CASES
from tolerance import assert_near

from attnpass.errors import ArgumentError
from attnpass.kernels import ops, reference

NAMES = [n for n, c in CASES.items() if not (c.tau or c.offset or c.gain)]
TILE = [128, 256]


@pytest.mark.parametrize("name", NAMES)
def test_softmax(name, path):
    check_softmax(problems.problem(CASES[name]))


@pytest.mark.parametrize("name", NAMES)
def test_softmax_in_float64(name):
    check_softmax(problems.problem(CASES[name], torch.float64))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", ["plain", "odd sizes", "bias [B, H, T, S]", "causal"])
def test_softmax_of_low_precision_inputs(name, dtype, path):
    rounded = path != "tiled" and dtype == torch.bfloat16
    check_softmax(problems.problem(CASES[name], dtype), compute=dtype if rounded else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("peak", [0.1, 8.0, 60.0])
@pytest.mark.parametrize("causal", [False, True])
def test_maxima_that_grow_from_block_to_block(peak, causal, dtype, path):
    """Logits that rise along the keys, over several blocks of keys and queries."""
    t, s, d = 70, 200, 16
    q, k, v = (torch.randn(1, 2, n, d) for n in (t, s, s))
    k = k + torch.linspace(-peak, peak, s).view(1, 1, s, 1) * torch.ones(d) / d
    q = q.abs() + 1
    given = [x.to(dtype) for x in (q, k, v)]
    out, _ = ops.softmax(*given, None, None, SCALE, causal, [16, 32], [16, 32])
    want = reference.softmax(
        *(x.double() for x in given), None, None, scale=SCALE, causal=causal, fill=-torch.inf
    )
    assert_near(out, want, terms=8, compute=dtype if dtype in LOW else None)


def test_what_is_no_number_stays_in_its_row(path):
    q, k, v = torch.randn(3, 1, 1, 40, 8)
    q[0, 0, 3, 2] = torch.nan
    out, lse = ops.softmax(q, k, v, None, None, 0.3, False, TILE, TILE)
    assert out.isnan().all(-1).flatten().nonzero().tolist() == [[3]]
    assert lse.isnan().flatten().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("name", ["plain", "bias [S]", "keep [B, 1, 1, S]", "no keys"])
def test_opcheck(name, path):
    p = problems.problem(CASES[name])
    given = (p.q, p.k, p.v, p.bias, p.keep)
    args = (*given, SCALE, p.case.causal, *[list(p.case.tile)] * 2)
    torch.library.opcheck(torch.ops.attnpass.softmax.default, args)


def test_arguments_of_the_backward_are_checked():
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    lse = torch.zeros(1, 2, 5)
    call = torch.ops.attnpass.softmax_backward
    rest = (0.3, False, TILE, False)
    call(q, q, k, v, None, None, lse, lse, *rest)
    for wrong in (lse.double(), lse[:, :1], lse.to_sparse()):
        with pytest.raises(ArgumentError, match="expected (lse|delta)"):
            call(q, q, k, v, None, None, wrong, lse, *rest)
        with pytest.raises(ArgumentError, match="expected (lse|delta)"):
            call(q, q, k, v, None, None, lse, wrong, *rest)


@pytest.mark.parametrize("size", [0.0, 0.5, 0.999, 1.001, 2.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_logits_as_large_as_the_lengths_of_queries_and_keys_allow(size, sign, dtype, path):
    """Up to 32 / log2(e) no row looks for its maximum; all logits of some rows are at that end."""
    q, k = (torch.randn(1, 2, n, 16) for n in (40, 150))
    v = torch.randn(1, 2, 150, 24)
    along = F.normalize(torch.randn(16), dim=0)
    q[:, :, ::3], k[:, 0], k[:, 1, ::2] = along, sign * along, -sign * along
    compute = None if dtype == torch.float32 else dtype
    lengths = q.norm(dim=-1).amax() * k.norm(dim=-1).amax()
    q, k, v = (x.to(dtype) for x in (q, k, v))
    scale = size * 32 / 1.4427 / float(lengths) + 1e-6
    for causal in (False, True):
        out, lse = ops.softmax(q, k, v, None, None, scale, causal, [16, 32], [16, 32])
        given = (q.double(), k.double(), v.double(), None, None)
        want = reference.softmax(*given, scale=scale, causal=causal, fill=-torch.inf)
        assert_near(out, want, terms=8, compute=compute)
        s = given[0] @ given[1].transpose(-1, -2) * scale
        s = s.masked_fill(torch.ones(40, 150).triu(1) > 0, -torch.inf) if causal else s
        assert_near(lse, s.logsumexp(-1), terms=8, compute=compute)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_key_that_is_no_number_is_seen_by_the_rows_that_read_it(bad, dtype, path):
    q, k, v = (torch.randn(1, 2, 60, 16).to(dtype) for _ in range(3))
    k[0, 1, 30, 5] = bad
    out, lse = ops.softmax(q, k, v, None, None, 0.25, True, [16, 32], [16, 32])
    want = reference.softmax(q, k, v, None, None, scale=0.25, causal=True, fill=-torch.inf)
    assert bool(torch.equal(out.isnan(), want.isnan()))
    assert bool(lse[0, 0].isfinite().all() and lse[0, 1, :30].isfinite().all())
