"""The registered operators and the plain ATen forms against the float64 reference."""

from __future__ import annotations

import functools
import math
import shutil

import problems
import pytest
import torch
from problems import CASES, POSITIONS, Case, Problem
from tolerance import GRADIENT, assert_near
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from attnpass import forms
from attnpass.kernels import ops, reference
from attnpass.kernels import torch_tiled as tiled
from attnpass.kernels import torch_whole as aten
from attnpass.kernels.cpu import launch as cpu
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.select import (
    ATEN_SCORES,
    ATEN_SMALL,
    choose,
    choose_hydra,
    default_tile,
    space,
)
from attnpass.kernels.tile import IMPLEMENTATIONS, ShapeClass, Tile

SCALE = 0.6
H = tuple(reference.H_FUNCTIONS)
LOW = (torch.bfloat16, torch.float16)


def test_every_h_is_there():
    assert set(H) == {"sigmoid", "relu", "relu2", "gelu", "softplus", "identity", "relu6"}
    assert set(tiled.H) == set(cpu.H) == set(H)


@pytest.fixture(params=["c++", "tiled"])
def path(request, monkeypatch):
    """Both implementations of the operators on a CPU."""
    why = cpu.refusal("pointwise")
    if request.param == "tiled":
        monkeypatch.setattr(cpu, "library", lambda name: "switched off")
    elif why is not None:
        pytest.skip(why)
    return request.param


def test_the_kernels_are_there_where_the_machine_has_what_they_need():
    able = torch.backends.cpu.get_cpu_capability() == "AVX512" and shutil.which("g++") is not None
    for name in ("pointwise", "pointwise_backward", "hydra"):
        assert able == (cpu.refusal(name) is None)


def run(p: Problem, h: str, which: str) -> Tensor:
    if which == "fused":
        tiles = [list(p.case.tile)] * 2
        return ops.pointwise(*p.inputs(), SCALE, h, p.case.causal, *tiles, *p.positions())
    if which == "aten":
        return aten.pointwise(*p.inputs(), SCALE, h, p.case.causal)
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


@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", CASES)
def test_pointwise_aten(name, h):
    check(problems.problem(CASES[name]), h, "aten")


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("h", H)
def test_pointwise_float64(h, which):
    check(problems.problem(CASES["all"], torch.float64), h, which)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", ["plain", "odd sizes", "bias [B, H, T, S]", "all"])
def test_pointwise_op_of_low_precision_inputs(name, h, dtype, path):
    p = problems.problem(CASES[name].but(tau=True, offset=(1, CASES[name].h, 1, 1)), dtype)
    # the C++ kernel multiplies bfloat16 weights, as eager does; all else is float32
    rounded = path == "c++" and dtype == torch.bfloat16
    check(p, h, "fused", compute=dtype if rounded else None)


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


def test_without_a_compiler_plain_torch_runs_and_one_line_says_so(monkeypatch, caplog):
    from torch._inductor.codecache import CppCodeCache

    def fails(*_):
        raise RuntimeError("No working C++ compiler found\nlong\nstory")

    monkeypatch.setattr(CppCodeCache, "load", fails)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(cpu, "library", functools.cache(cpu.library.__wrapped__))
    p = problems.problem(CASES["all"])
    check(p, "sigmoid", "fused")
    assert cpu.refusal("pointwise") == "no C++ kernel: No working C++ compiler found"
    assert "install g++ or set $CXX" in caplog.text
    lines = [r for r in caplog.records if "No working" in r.message]
    assert len(lines) == 2  # one per kernel, forward and backward, not one per call


def test_without_the_instructions_plain_torch_runs(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(cpu, "library", functools.cache(cpu.library.__wrapped__))
    assert cpu.refusal("pointwise") == "no AVX-512 here (AVX2)"
    check(problems.problem(CASES["all"]), "relu", "fused")


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_with_onednn_switched_off_plain_torch_runs(path):
    with torch.backends.mkldnn.flags(enabled=False):
        check(problems.problem(CASES["all"]), "relu", "fused")
        check_hydra("fused", *hydra_inputs("plain"), False)


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


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


def test_no_gradient_asked_none_recorded():
    p = problems.problem(CASES["all"])
    with torch.no_grad():
        assert not run(p, "gelu", "fused").requires_grad


# --- the operators as compilers see them ------------------------------------------------------


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
    args = (grad, *(x.detach() if isinstance(x, Tensor) else x for x in args))
    tests = ("test_schema", "test_faketensor")
    back = torch.ops.attnpass.hydra_backward.default
    torch.library.opcheck(back, args, test_utils=tests)


# --- hydra ------------------------------------------------------------------------------------

HYDRA = {
    "plain": (2, 3, 6, 6, 4),
    "one token": (1, 1, 1, 1, 3),
    "odd sizes": (3, 3, 13, 13, 5),
    "cross": (2, 2, 5, 9, 4),
    "cross, fewer keys": (2, 2, 9, 5, 4),
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
        return aten.hydra(q, k, v, keep, gain, causal, eps)
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


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", HYDRA)
def test_hydra(name, causal, masked, transposed, which, path):
    if causal and HYDRA[name][2] != HYDRA[name][3]:
        causal = False  # a running sum needs T = S; legality declines the rest
    q, k, v, keep, grad = hydra_inputs(name, transposed=transposed)
    check_hydra(which, q, k, v, keep if masked else None, grad, causal)


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_float64(causal, which):
    check_hydra(which, *hydra_inputs("odd sizes", torch.float64), causal)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["plain", "odd sizes", "cross"])
def test_hydra_op_computes_low_precision_inputs_in_float32(name, causal, dtype, path):
    causal = causal and name != "cross"
    check_hydra("fused", *hydra_inputs(name, dtype), causal)


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("tile", [(1, 1, 4, 2, 1), (5, 7, 4, 2, 1), (128, 512, 4, 2, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_tiles(causal, tile, which):
    check_hydra(which, *hydra_inputs("odd sizes"), causal, tile=tile)


@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (2, 1, 1, 6)])
@pytest.mark.parametrize("which", ["fused", "aten"])
def test_hydra_keep_shapes_and_a_fully_masked_item(which, shape, path):
    q, k, v, _, grad = hydra_inputs("plain")
    keep = torch.ones(shape, dtype=torch.bool)
    keep[-1] = False
    check_hydra(which, q, k, v, keep, grad, False)
    assert bool((run_hydra(which, q, k, v, keep, False, 1e-6)[-1] == 0).all())


@pytest.mark.parametrize("which", ["fused", "aten"])
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 3e-5, 0.1])
def test_hydra_below_the_floor_of_the_norm(eps, which, path):
    # rows of zero, of a norm far below and far above the floor
    q, k, v, keep, grad = hydra_inputs("plain")
    q, k = q.detach().clone(), k.detach().clone()
    for x in (q, k):
        x[:, :, 0] = 0.0
        x[:, :, 1] *= 0.01 * math.sqrt(eps)
        x[:, :, 2] *= 0.02 * math.sqrt(eps)
    q, k = q.requires_grad_(), k.requires_grad_()
    out = run_hydra(which, q, k, v, keep, False, eps)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = run_hydra("reference", *wide, keep, False, eps)
    assert_near(out, want)
    got = torch.autograd.grad(out, (q, k, v), grad)
    wanted = torch.autograd.grad(want, wide, grad.double())
    for row in range(6):  # gradients differ in size by 1/sqrt(eps) between rows
        for name, g, w in zip("qkv", got, wanted, strict=True):
            assert_near(g[:, :, row], w[:, :, row], terms=GRADIENT, name=f"d{name} row {row}")


@pytest.mark.parametrize("h", ["relu", "relu2", "identity", "softplus", "gelu"])
def test_gradients_are_right_where_h_is_flat_or_large(h, path):
    # logits far from 0 on both sides, where a slope that overflows or cancels would show
    p = problems.problem(CASES["all"])
    p.offset = (p.offset.detach() * 40).requires_grad_()
    check(p, h, "fused")


# --- which implementation runs ----------------------------------------------------------------


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


FUSED, ATEN = Tile(block_m=32, block_n=64), Tile("aten")
BOTH = ("forward", "backward")


@pytest.mark.parametrize(
    ("tile", "dtype", "expected"),
    [
        (None, torch.float32, "aten"),
        (None, torch.float64, "aten"),
        (None, torch.bfloat16, "fused"),
        (None, torch.float16, "fused"),
        (FUSED, torch.float32, "fused"),
        (FUSED, torch.bfloat16, "fused"),
        (ATEN, torch.float32, "aten"),
        # plain operations would round the logits to the input dtype
        (ATEN, torch.bfloat16, "fused"),
        (ATEN, torch.float16, "fused"),
    ],
)
def test_which_implementation_runs(tile, dtype, expected):
    q = torch.randn(1, 2, 5, 4, dtype=dtype)
    assert choose(q, q, tile).implementation == expected
    if tile is not None and tile.implementation == expected:
        assert choose(q, q, tile) is tile
    module = forms.Pointwise(2, 2, 4, h="relu", tile=tile)
    with torch.no_grad(), Seen() as seen:
        module(q, q, q)
    assert seen.names == (["attnpass::pointwise"] if expected == "fused" else [])


@pytest.mark.parametrize(
    ("tile", "causal", "t", "expected"),
    [
        (None, False, 500, "aten"),
        (None, True, 127, "aten"),
        (None, True, 128, "the kernel's"),
        (ATEN, True, 128, "aten"),
        (FUSED, False, 5, "fused"),
    ],
    ids=str,
)
def test_which_hydra_runs(tile, causal, t, expected, path):
    if expected == "the kernel's":
        expected = "fused" if path == "c++" else "aten"
    q = torch.randn(1, 2, t, 4)
    with torch.no_grad(), Seen() as seen:
        forms.Hydra(2, 4, tile=tile, causal=causal)(q, q, q)
    assert seen.names == (["attnpass::hydra"] if expected == "fused" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_scores_go_to_the_fused_operator(path, dtype):
    # there is no C++ kernel for float64
    fast = path == "c++" and dtype == torch.float32
    limit = ATEN_SMALL if fast else ATEN_SCORES
    n = math.isqrt(limit)
    q, k = (torch.empty(1, 1, m, 1, dtype=dtype) for m in (n, limit // n))
    assert choose(q, k, None).implementation == "aten"
    more = torch.empty(1, 1, limit // n + 1, 1, dtype=dtype)
    assert choose(q, more, None) == default_tile("cpu", 1)


def test_float64_hydra_is_plain(path):
    assert choose_hydra(torch.empty(1, 1, 200, 4, dtype=torch.float64), True, None) == Tile("aten")


def test_the_choice_does_not_break_a_graph():
    module = forms.Pointwise(2, 2, 4, h="relu")
    q = torch.randn(1, 2, 40, 4)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(q, q, q), module(q, q, q))


# --- on a GPU that is not here ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_on_a_gpu_a_graph_holds_the_operators_with_its_tiles(dtype, monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda: 90)
    h, d = 2, 64
    with FakeTensorMode():
        q = torch.empty(1, h, 200, d, device="cuda", dtype=dtype)
        for module, name in (
            (forms.Pointwise(h, h, d, h="sigmoid", trainable=False), "pointwise"),
            (forms.Hydra(h, d, trainable=False), "hydra"),
            (forms.Hydra(h, d, causal=True, trainable=False), "hydra"),
        ):
            graph = make_fx(module)(q, q, q).graph
            (call,) = (n for n in graph.nodes if str(n.target).startswith("attnpass."))
            assert str(call.target) == f"attnpass.{name}.default"
            if name == "pointwise":
                tiles = [default_tile("cuda", d, x, dtype).as_list() for x in BOTH]
                assert [list(x) for x in call.args[11:13]] == tiles
                assert tiles[0] == gpu.default(d, d, 2, "forward", 90).as_list()


def test_on_an_older_gpu_plain_torch_runs(monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda: 75)
    calls = []
    monkeypatch.setattr(tiled, "pointwise", lambda *a: calls.append(a) or a[0])
    with FakeTensorMode():
        q = torch.empty(1, 2, 200, 64, device="cuda", dtype=torch.float16)
        terms = (*[None] * 5, 0.1, "relu", False, Tile().as_list())
        ops._run("pointwise", q, q, q, q, *terms, None, None, 0)
        assert choose_hydra(q, True, None) == Tile("aten")
    assert len(calls) == 1


def test_on_a_gpu_few_tokens_of_hydra_are_left_to_the_compiler():
    with FakeTensorMode():
        q = torch.empty(1, 2, 16, 64, device="cuda")
        assert choose_hydra(q, True, None) == Tile("aten")
        assert choose_hydra(q.double(), True, None) == Tile("aten")
        long = torch.empty(1, 2, 3000, 64, device="cuda", dtype=torch.float64)
        assert choose(long, long) == Tile("aten")


# --- measured tiles ---------------------------------------------------------------------------


def test_a_measured_tile_is_used_by_calls_of_its_class_alone():
    # bfloat16 takes the operator on every machine
    q = torch.randn(1, 2, 40, 4).bfloat16()
    forward, backward = (ShapeClass.of(q, q, q, None, None, "relu", False, d) for d in BOTH)
    tiles = {str(forward): Tile(block_m=16, block_n=32), str(backward): Tile(block_m=64)}
    module = forms.Pointwise(2, 2, 4, h="relu", tiles=tiles)

    def used(q, k):
        with Seen() as seen:
            module(q, k, k)
        return seen.tiles[0]

    assert used(q, q) == [tiles[str(d)].as_list() for d in (forward, backward)]
    # 33 and 64 queries are of one class; 65, other keys, or another dtype are not
    assert used(q[:, :, :33], q) == used(q, q)
    defaults = [default_tile("cpu", 4, d).as_list() for d in BOTH]
    assert used(torch.randn(1, 2, 65, 4).bfloat16(), q) == defaults
    assert used(q, torch.randn(1, 2, 80, 4).bfloat16()) == defaults
    assert used(q.half(), q.half()) == defaults


def test_what_a_shape_class_tells_apart():
    q, v = torch.randn(2, 3, 197, 8), torch.randn(2, 3, 197, 6)
    rows, columns = torch.ones(2, 1, 197, 197), torch.ones(2, 1, 1, 197).bool()

    def name(q=q, v=v, bias=None, keep=None, h="sigmoid", causal=False, direction="forward"):
        return str(ShapeClass.of(q, q, v, bias, keep, h, causal, direction))

    assert name() == "sigmoid forward 8x256x256x8:6 float32 full"
    assert name(bias=rows, keep=columns) == "sigmoid forward 8x256x256x8:6 float32 full+rows"
    assert name(keep=columns[0, 0, 0]) == name(keep=columns)
    seen = [
        name(),
        name(v=q),
        name(keep=columns),
        name(bias=rows),
        name(causal=True),
        name(h="relu"),
        name(direction="backward"),
        name(q=torch.cat([q, q, q])),
        name(q=q.double()),
    ]
    assert len(set(seen)) == len(seen)


def test_a_size_without_a_value_has_no_class():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    n = ShapeEnv().create_unbacked_symint()
    q = torch.empty(1, 1, 4, 2, device="meta")
    with torch._subclasses.FakeTensorMode(shape_env=n.node.shape_env):
        k = torch.empty(1, 1, n, 2)
    assert ShapeClass.of(q, k, k, None, None, "relu", False) is None


@pytest.mark.parametrize("name", ["block_m", "block_n", "warps", "stages", "heads"])
@pytest.mark.parametrize("value", [0, -1])
def test_tile_refuses_sizes_below_one(name, value):
    with pytest.raises(ValueError, match=rf"expected {name} >= 1, got {value}"):
        Tile(**{name: value})


@pytest.mark.parametrize("name", ["descriptors", "persistent"])
def test_tile_refuses_switches_beyond_on_and_off(name):
    with pytest.raises(ValueError, match=f"expected {name} 0 or 1, got 2"):
        Tile(**{name: 2})


def test_tile_refuses_an_unknown_implementation():
    with pytest.raises(ValueError, match="expected implementation in .*, got 'cuda'"):
        Tile("cuda")
    assert IMPLEMENTATIONS == ("fused", "aten")


def test_tile_round_trips():
    tile = Tile(block_m=3, block_n=5, warps=7, stages=1, heads=2, persistent=1)
    assert tile.as_list() == [3, 5, 7, 1, 2, 0, 1]
    assert Tile(**tile.as_dict()) == tile


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_space_holds_the_default(device, direction):
    default = default_tile(device, 64, direction).as_dict()
    for name, choices in space(device).items():
        assert default[name] in choices
        assert len(set(choices)) == len(choices) > 1
