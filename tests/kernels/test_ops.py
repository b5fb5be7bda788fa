"""The operators as users and compilers see them."""

from __future__ import annotations

import problems
import pytest
import torch
from kernel_checks import SCALE, H, check, gradients, hydra_inputs, run
from problems import CASES, Case
from tolerance import GRADIENT, assert_near


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("h", H)
def test_pointwise_float64(h, which):
    check(problems.problem(CASES["all"], torch.float64), h, which)


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("h", H)
def test_masked_positions_never_overflow_into_the_result(h, which):
    # a padded key may hold anything finite; h of it overflows float32
    p = problems.problem(Case(keep=(2, 1, 1, 6)))
    garbage = ~p.keep[:, 0, 0, :, None].expand(-1, -1, 4).unsqueeze(1)
    wild = p.k.detach().masked_fill(garbage, 1e25).requires_grad_()
    tame = p.k.detach().masked_fill(garbage, 0.0).requires_grad_()
    results = []
    for k in (wild, tame):
        p.k = k
        out = run(p, h, which)
        results.append((out, *gradients(out, p).values()))
    for got, want in zip(*results, strict=True):
        assert_near(got, want.double(), terms=GRADIENT)


def test_no_gradient_asked_none_recorded():
    p = problems.problem(CASES["all"])
    with torch.no_grad():
        assert not run(p, "gelu", "fused").requires_grad


@pytest.mark.parametrize(
    "name",
    ["plain", "all", "no keys", "transposed", "bias [S]", "bias permuted", "keep [B, 1, 1, S]"],
)
def test_opcheck_pointwise(name, path):
    p = problems.problem(CASES[name])
    args = (*p.inputs(), SCALE, "sigmoid", p.case.causal, *[list(p.case.tile)] * 2)
    torch.library.opcheck(torch.ops.attnpass.pointwise.default, args)


@pytest.mark.parametrize("needs_bias", [True, False])
@pytest.mark.parametrize("name", ["plain", "all", "transposed", "bias [S]", "bias permuted"])
def test_opcheck_pointwise_backward(name, needs_bias, path):
    p = problems.problem(CASES[name])
    inputs = [None if x is None else x.detach() for x in p.inputs()]
    args = (p.grad, *inputs, SCALE, "gelu", p.case.causal, list(p.case.tile), needs_bias)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.attnpass.pointwise_backward.default, args, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_hydra(masked, causal, dtype, path):
    q, k, v, keep, grad = hydra_inputs("plain", dtype)
    gain = torch.randn(1, 3, 1, 4).requires_grad_() if masked else None
    args = (q, k, v, keep if masked else None, gain, causal, 1e-6, [4, 4, 4, 2, 1])
    torch.library.opcheck(torch.ops.attnpass.hydra.default, args)
    args = (grad, *(x.detach() if isinstance(x, torch.Tensor) else x for x in args))
    tests = ("test_schema", "test_faketensor")
    back = torch.ops.attnpass.hydra_backward.default
    torch.library.opcheck(back, args, test_utils=tests)


POINTWISE = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? keep, Tensor? tau, Tensor? offset,"
    " Tensor? gain, float scale, str h, bool causal, SymInt[] tile"
)
POSITIONS_TEXT = "Tensor? slopes=None, Tensor? lengths=None, SymInt window=0"
SOFTMAX = "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? keep, float scale, bool causal"
HYDRA_TEXT = (
    "Tensor q, Tensor k, Tensor v, Tensor? keep, Tensor? gain, bool causal, float eps,"
    " SymInt[] tile"
)


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("pointwise", f"{POINTWISE}, SymInt[] grad_tile, {POSITIONS_TEXT}", "Tensor"),
        (
            "pointwise_backward",
            f"Tensor grad, {POINTWISE}, bool needs_bias, {POSITIONS_TEXT}",
            "Tensor[]",
        ),
        ("softmax", f"{SOFTMAX}, SymInt[] tile, SymInt[] grad_tile", "(Tensor, Tensor)"),
        (
            "softmax_backward",
            f"Tensor grad, {SOFTMAX.replace('keep,', 'keep, Tensor lse, Tensor delta,')},"
            " SymInt[] tile, bool needs_bias, Tensor? out=None",
            "Tensor[]",
        ),
        ("hydra", HYDRA_TEXT, "Tensor"),
        ("hydra_backward", f"Tensor grad, {HYDRA_TEXT}", "Tensor[]"),
    ],
)
def test_the_schema_that_compiled_graphs_hold_stays(name, arguments, result):
    schema = str(getattr(torch.ops.attnpass, name).default._schema)
    assert schema == f"attnpass::{name}({arguments}) -> {result}"
