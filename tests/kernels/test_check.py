"""A valid call of an operator, and each thing that may be wrong with one."""

from __future__ import annotations

import random

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hostile_operators.faults import HYDRA, POINTWISE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from attnpass.errors import ArgumentError, AttnpassError
from attnpass.kernels import ops  # noqa: F401

ATTN = torch.ops.attnpass


def pointwise(b=2, h=4, g=2, t=5, s=6, d=8, dv=3, dtype=torch.float32):
    """A valid call of the backward with every argument, whose faults are those of both."""
    return {
        "grad": torch.randn(b, h, t, dv).to(dtype),
        "q": torch.randn(b, h, t, d).to(dtype),
        "k": torch.randn(b, g, s, d).to(dtype),
        "v": torch.randn(b, g, s, dv).to(dtype),
        "bias": torch.randn(h, 1, s),
        "keep": torch.rand(b, 1, t, s) < 0.7,
        "tau": torch.rand(h) + 0.5,
        "offset": torch.randn(t, 1),
        "gain": torch.randn(b, h, 1, 1),
        **{"scale": 0.3, "h": "gelu", "causal": False, "tile": [16, 32]},
        **{"needs_bias": True, "slopes": torch.rand(h), "lengths": torch.tensor([9, -2])},
        "window": 4,
    }


def hydra(b=2, h=3, t=5, s=6, d=8):
    grad, q = torch.randn(2, b, h, t, d)
    k, v = torch.randn(2, b, h, s, d)
    terms = {"keep": torch.rand(b, 1, 1, s) < 0.7, "gain": torch.randn(1, h, 1, d)}
    rest = {"causal": False, "eps": 1e-6, "tile": [16, 32]}
    return {"grad": grad, "q": q, "k": k, "v": v, **terms, **rest}


def forward_of(given):
    """The arguments of the forward: no ``grad``, and a tile in the place of ``needs_bias``."""
    renamed = {"needs_bias": "grad_tile"}
    found = {renamed.get(n, n): x for n, x in given.items() if n != "grad"}
    return found | ({"grad_tile": [8]} if "grad_tile" in found else {})


CASES = [
    *(("pointwise", pointwise, n, f) for n, f in POINTWISE.items()),
    *(("hydra", hydra, n, f) for n, f in HYDRA.items()),
]
IDS = [f"{name}, {fault}" for name, _, fault, _ in CASES]


@pytest.mark.parametrize(("name", "make", "fault", "spoil"), CASES, ids=IDS)
def test_each_fault_is_refused(name, make, fault, spoil):
    directions = [(f"{name}_backward", make()), (name, forward_of(make()))]
    refused = 0
    for operator, given in directions:
        getattr(ATTN, operator)(*given.values())
        changed = spoil(given, random.Random(0))
        if changed is None:  # only one direction has the argument
            continue
        with pytest.raises(ArgumentError, match="^expected .*, got .*$") as caught:
            getattr(ATTN, operator)(*changed.values())
        assert "\n" not in str(caught.value)
        refused += 1
    assert refused > 0


def test_the_error_is_one_of_ours_and_a_value_error():
    assert issubclass(ArgumentError, AttnpassError) and issubclass(ArgumentError, ValueError)


def test_an_error_says_what_was_expected_and_what_came():
    given = forward_of(pointwise())
    given["k"] = torch.randn(2, 3, 6, 8)
    given["v"] = torch.randn(2, 3, 6, 3)
    expected = "^expected a number of key heads that divides the 4 query heads, got 3$"
    with pytest.raises(ArgumentError, match=expected):
        ATTN.pointwise(*given.values())


def traced(given, dynamic=DimDynamic.DYNAMIC):
    """The arguments as a trace has them, every size of q, k and v symbolic, and its guards."""
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)

    def fake(name, x):
        if not isinstance(x, Tensor):
            return x
        kind = dynamic if name in ("q", "k", "v") else DimDynamic.STATIC
        context = StatelessSymbolicContext(dynamic_sizes=[kind] * x.dim())
        return mode.from_tensor(x, symbolic_context=context)

    return {n: fake(n, x) for n, x in given.items()}, mode, env


@pytest.mark.parametrize(("name", "make"), [("pointwise", pointwise), ("hydra", hydra)])
def test_a_trace_gets_no_guard_from_symbolic_sizes(name, make):
    given, mode, env = traced(forward_of(make()))
    before = len(env.guards)
    with mode:
        out = getattr(ATTN, name)(*given.values())
    assert len(env.guards) == before
    assert all(isinstance(n, torch.SymInt) for n in out.shape)


def test_beside_symbolic_sizes_the_others_are_compared():
    given, mode, _ = traced(forward_of(pointwise()))
    given["tau"] = mode.from_tensor(torch.ones(2, 2))
    with mode, pytest.raises(ArgumentError, match=r"expected tau \[\?\], got"):
        ATTN.pointwise(*given.values())


def test_meta_tensors_get_the_shape_of_the_result():
    given = forward_of(pointwise())
    given = {n: x.to("meta") if isinstance(x, Tensor) else x for n, x in given.items()}
    out = ATTN.pointwise(*given.values())
    assert out.device.type == "meta" and list(out.shape) == [2, 4, 5, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_lengths_beyond_the_keys_mean_none_and_all(dtype, path):
    given = forward_of(pointwise(dtype=dtype))
    wild = given | {"lengths": torch.tensor([2**40, -(2**40)])}
    tame = given | {"lengths": torch.tensor([6, 0])}
    found = [ATTN.pointwise(*x.values()) for x in (wild, tame)]
    assert torch.equal(*found)
    assert bool((found[0][1] == 0).all()) and bool((found[0][0] != 0).any())


@pytest.mark.parametrize(("name", "make"), [("pointwise", pointwise), ("hydra", hydra)])
def test_a_forward_mode_derivative_is_refused_and_not_zero(name, make):
    given = forward_of(make())

    def run(q):
        return getattr(ATTN, name)(*(given | {"q": q}).values())

    with pytest.raises(ArgumentError, match="expected a call outside of forward-mode"):
        torch.func.jvp(run, (given["q"],), (given["q"],))
    with forward_ad.dual_level(), pytest.raises(ArgumentError, match="got one in it"):
        run(forward_ad.make_dual(given["q"], given["q"]))
    run(given["q"])
