"""The pointwise operator on a CPU, by the C++ kernels and by plain torch, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import problems
import pytest
import torch
from kernel_checks import LOW, H, check, gradients, run
from problems import CASES, POSITIONS, Case
from tolerance import GRADIENT, assert_near

from attnpass.kernels import ops, reference, torch_softmax
from attnpass.kernels.call import PointwiseCall
from attnpass.kernels.cpu import pointwise_launch
from attnpass.kernels.select import (
    default_tile,
)
from attnpass.kernels.tile import Tile


@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", CASES)
def test_pointwise_op(name, h, path):
    check(problems.problem(CASES[name]), h, "fused")


@pytest.mark.parametrize("h", ["gelu", "sigmoid"])
@pytest.mark.parametrize("name", POSITIONS)
def test_pointwise_op_with_positions(name, h, path):
    check(problems.problem(POSITIONS[name]), h, "fused")


def test_a_function_with_a_shortcut_on_a_gpu_is_exact_on_a_cpu(path):
    p = problems.problem(CASES["all"])
    out, want = run(p, "sigmoid_tanh", "fused"), run(p, "sigmoid", "fused")
    assert torch.equal(out, want)
    for got, other in zip(gradients(out, p).values(), gradients(want, p).values(), strict=True):
        assert torch.equal(got, other)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", ["plain", "odd sizes", "bias [B, H, T, S]", "all"])
def test_pointwise_op_of_low_precision_inputs(name, h, dtype, path):
    p = problems.problem(CASES[name].but(tau=True, offset=(1, CASES[name].h, 1, 1)), dtype)
    # the C++ kernel multiplies bfloat16 weights, as eager does; all else is float32
    rounded = path != "tiled" and dtype == torch.bfloat16
    check(p, h, "fused", compute=dtype if rounded else None)


@pytest.mark.parametrize("h", ["sigmoid", "softplus"])
def test_weights_of_size_one_over_n_are_relatively_right(h, path):
    # b = -log n: an absolute test would not see a wrong tail
    p = problems.problem(Case(t=5, s=300, tile=(4, 64, 4, 2, 1)))
    p.offset = torch.full((1, 1, 1, 1), -math.log(300)).requires_grad_()
    p.v = torch.ones_like(p.v).requires_grad_()
    out, want = run(p, h, "fused"), run(p.double(), h, "reference")
    assert bool(((out - want).abs() <= 4e-6 * want.abs()).all())


def eager(q, k, v, offset, gain):
    """Sigmoid attention as a user would write it, in the dtype of its inputs."""
    s = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return ((torch.sigmoid(s + offset.to(q.dtype)) @ v) * gain.to(q.dtype)).to(q.dtype)


@pytest.mark.parametrize("start", ["-log n", "-LSE"])
@pytest.mark.parametrize("deviation", [0.5, 1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_errors_are_at_most_twice_those_of_eager_torch(dtype, deviation, start, path):
    draw = torch.Generator().manual_seed(0)
    b, h, n, d = 1, 4, 256, 64
    q, k, v = torch.randn(3, b, h, n, d, generator=draw).to(dtype)
    q = (q * deviation).to(dtype)
    s = q.double() @ k.double().transpose(-1, -2) * d**-0.5
    offset = torch.full((1, h, 1, 1), -math.log(n))
    if start == "-LSE":
        offset = -s.logsumexp(-1, keepdim=True).mean((0, 2), keepdim=True).float()
    gain = torch.rand(1, h, 1, 1, generator=draw) + 0.5
    inputs = (q, k, v, None, None, None, offset)
    tile = default_tile("cpu", d).as_list()
    want = reference.pointwise(*inputs, gain, scale=d**-0.5, h="sigmoid", causal=False)
    got = ops.pointwise(*inputs, gain, d**-0.5, "sigmoid", False, tile, tile)

    def error(x):
        return float((x.double() - want).norm() / want.norm())

    assert error(got) <= 2 * error(eager(q, k, v, offset, gain))


@pytest.mark.parametrize("h", H)
def test_rows_without_a_key_are_exactly_zero_and_finite(h, path):
    # a bias of -inf alone, and with logits that overflow h
    q, k, v = torch.full((3, 1, 1, 40, 8), 1e18)
    bias = torch.zeros(1, 1, 40, 40)
    bias[:, :, 3:17] = -math.inf
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    tile = [16, 32, 4, 2, 1]
    out = ops.pointwise(*leaves, bias, None, None, None, None, 1.0, h, False, tile, tile)
    assert bool((out[:, :, 3:17] == 0).all())
    (dq,) = torch.autograd.grad(out[:, :, 3:17].sum(), leaves[0])
    assert bool((dq == 0).all())


def test_more_keys_than_the_default_tile(path):
    p = problems.problem(Case(b=1, t=130, s=515, causal=False, keep=(1, 1, 1, 515)))
    p.case = p.case.but(tile=tuple(default_tile("cpu", 4).as_list()))
    check(p, "gelu", "fused")


@pytest.mark.parametrize("needed", problems.NAMES)
def test_each_gradient_alone(needed, path):
    p = problems.problem(CASES["all"])
    for name, x in p.leaves().items():
        x.requires_grad_(name == needed)
    out = run(p, "gelu", "fused")
    x = getattr(p, needed)
    (got,) = torch.autograd.grad(out, x, p.grad)
    wide = p.double()
    want = gradients(run(wide, "gelu", "reference"), wide)[needed]
    assert_near(got, want, terms=GRADIENT)


def results(p, hydra):
    inputs = {n: getattr(p, n) for n in ("q", "k", "v")}
    if hydra:
        out = ops.hydra(*inputs.values(), p.keep, None, p.case.causal, 1e-6, list(p.case.tile))
    else:
        out, inputs = run(p, "sigmoid", "fused"), p.leaves()
    return out, *torch.autograd.grad(out, list(inputs.values()), p.grad)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hydra", [False, True], ids=["pointwise", "hydra"])
@pytest.mark.parametrize("case", ["many heads", "one head", "shared bias"])
def test_threads_change_nothing_beyond_rounding_and_runs_nothing_at_all(
    case, hydra, causal, threads, path
):
    # one head: threads share its keys; a shared bias: no two threads add to the same place
    heads = 1 if case == "one head" else 4
    shape = Case(b=1, h=heads, g=heads, t=200, s=200, causal=causal, keep=(1, 1, 1, 200))
    shape = shape.but(tile=(64, 32, 4, 2, 1), tau=True, offset=(1, heads, 1, 1))
    shape = shape.but(bias=(1, 1, 200, 200) if case == "shared bias" and not hydra else None)
    p = problems.problem(shape)
    threads(1)
    want = results(p, hydra)
    for n in (2, 3):
        threads(n)
        got, again = results(p, hydra), results(p, hydra)
        for one, other, wanted in zip(got, again, want, strict=True):
            assert torch.equal(one, other)
            assert_near(one, wanted.double(), terms=GRADIENT)


@pytest.mark.parametrize("h", ["relu", "relu2", "identity", "softplus", "gelu"])
def test_gradients_are_right_where_h_is_flat_or_large(h, path):
    # logits far from 0 on both sides, where a slope that overflows or cancels would show
    p = problems.problem(CASES["all"])
    p.offset = (p.offset.detach() * 40).requires_grad_()
    check(p, h, "fused")


def test_an_empty_batch_with_every_term(path):
    p = problems.problem(CASES["all"].but(b=0, keep=None))
    out = run(p, "gelu", "fused")
    assert out.shape == (0, 4, 7, 5)
    for name, gradient in gradients(out, p).items():
        assert bool((gradient == 0).all()), name


def test_another_default_dtype_changes_no_result(path):
    p = problems.problem(CASES["all"])
    want = [run(p, "gelu", "fused"), *results(p, False)]
    torch.set_default_dtype(torch.float64)
    try:
        got = [run(p, "gelu", "fused"), *results(p, False)]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("far", "row"),
    [(False, [0.0, -torch.inf, -(2.0**11)]), (True, [0.0, 2.0**11 + 1, 0.0]), (False, [])],
)
def test_a_log_sum_exp_far_from_zero_is_left_to_plain_torch(far, row, monkeypatch):
    plain = []
    monkeypatch.setattr(
        pointwise_launch.torch_softmax, "softmax_backward", lambda *given: plain.append(given)
    )
    q, k = torch.randn(1, 2, len(row), 8), torch.randn(1, 2, 5, 8)
    call = PointwiseCall(q, k, k, None, None, None, None, None, 0.3, "softmax", False, Tile())
    lse = torch.tensor(row).expand(1, 2, -1)
    pointwise_launch.softmax_backward(q, call, lse, lse.new_zeros(lse.shape), False)
    assert bool(plain) == far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dv", [1, 7, 40])
def test_the_products_of_the_output_and_its_gradient_are_summed_by_the_kernel(dv, dtype):
    q, k = (torch.randn(2, 4, n, 8).to(dtype) for n in (37, 11))
    v = torch.randn(2, 2, 11, dv).to(dtype)
    call = PointwiseCall(
        q, k[:, :2], v, None, None, None, None, None, 0.3, "softmax", True, Tile()
    )
    out, lse = pointwise_launch.softmax(call)
    grad = torch.randn(2, 37, 4, 2 * dv).to(dtype).transpose(1, 2)[..., ::2]
    zero = torch.zeros(()).expand(lse.shape)
    found = pointwise_launch.softmax_backward(grad, call, lse, zero, False, out)
    wide = replace(call, q=q.double(), k=call.k.double(), v=v.double())
    want = torch_softmax.softmax_backward(grad.double(), wide, zero.double(), False, out.double())
    for name in ("q", "k", "v"):
        got, compute = getattr(found, name), dtype if dtype == torch.bfloat16 else None
        assert_near(got, getattr(want, name), terms=GRADIENT, compute=compute)
