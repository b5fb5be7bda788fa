"""The Triton kernels: under Triton's interpreter, or on a GPU if that is switched off.

Every output starts as NaN, and every input is a view into a buffer of NaN, so that a position
that is not written, or is read out of bounds, shows.
"""

from __future__ import annotations

import math

import problems
import pytest
import torch
import triton
from problems import CASES, POSITIONS, Case
from tolerance import GRADIENT, assert_near
from triton.runtime.errors import OutOfResources

import attnpass
from attnpass.kernels import reference
from attnpass.kernels.gpu import hydra_triton_launch
from attnpass.kernels.gpu import pointwise_triton_launch as triton_launch
from attnpass.kernels.select import default_tile
from attnpass.kernels.tile import Tile

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
SCALE = 0.6
H = tuple(reference.H_FUNCTIONS)
TILE = tuple(Tile(block_m=16, block_n=16).as_list())
LOW = (torch.float16, torch.bfloat16)
# a Triton dot needs blocks of 16: sizes around that, where no tile divides
SIZES = {
    "exact": (16, 32, 16, 16),
    "odd": (17, 35, 5, 7),
    "one": (1, 1, 1, 1),
    "wide": (3, 18, 33, 20),
    "tall": (37, 5, 20, 33),
}


@pytest.fixture(autouse=True)
def nan_in_every_fresh_tensor():
    # on a GPU deterministic matmuls of the reference would ask for a cuBLAS workspace
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_kernels_do_run_under_triton():
    if DEVICE == "cpu":
        assert triton.knobs.runtime.interpret
        from attnpass.kernels.gpu.pointwise_triton import pointwise_forward

        assert type(pointwise_forward).__name__ == "InterpretedFunction"


def padded(x):
    """``x`` with the same numbers and dim order, as a view into a larger buffer of NaN (or 1)."""
    if x is None:
        return None
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    fill = True if x.dtype == torch.bool else math.nan
    # 8 entries: what is aligned to 16 bytes stays so, as descriptors want it
    buffer = torch.full([x.shape[i] + 16 for i in order], fill, dtype=x.dtype, device=DEVICE)
    for i in range(x.dim()):
        buffer = buffer.narrow(i, 8, x.shape[order[i]])
    view = buffer.permute([order.index(i) for i in range(x.dim())])
    view.copy_(x.detach())
    return view


def on_device(p):
    """The inputs and positions of a problem, big ones within NaN."""
    q, k, v, bias, keep, tau, offset, gain = p.inputs()
    inputs = [padded(x) for x in (q, k, v, bias, keep)]
    small = [None if x is None else x.detach().to(DEVICE) for x in (tau, offset, gain)]
    slopes, lengths, window = p.positions()
    return [*inputs, *small], [
        *(None if x is None else x.to(DEVICE) for x in (slopes, lengths)),
        window,
    ]


def check(case: Case, h: str, dtype=torch.float32, terms=1.0, compute=None):
    """Forward and every gradient against autograd through the float64 reference."""
    p = problems.problem(case, dtype)
    inputs, positions = on_device(p)
    rest = (SCALE, h, case.causal, list(case.tile))
    got = triton_launch.pointwise(*inputs, *rest, *positions)
    wide = p.double()
    want = reference.pointwise(
        *wide.spelled(), scale=SCALE, h=h.removesuffix("_tanh"), causal=case.causal
    )
    assert got.dtype == dtype
    got = got.cpu()
    assert_near(got, want, terms=terms, compute=compute)
    assert bool((got[p.masked] == 0).all())
    grad = padded(p.grad)
    found = triton_launch.pointwise_backward(grad, *inputs, *rest, True, *positions)
    names = ("q", "k", "v", "bias", "tau", "offset", "gain")
    leaves = wide.leaves()
    wanted = torch.autograd.grad(want, list(leaves.values()), p.grad.double())
    wanted = dict(zip(leaves, wanted, strict=True))
    for name, x in zip(names, found, strict=True):
        if name not in wanted:
            assert x.numel() == 0
            continue
        assert x.dtype == getattr(p, name).dtype
        assert_near(
            x.cpu(), wanted[name], terms=terms * GRADIENT, compute=compute, name=f"d{name}"
        )


@pytest.mark.parametrize("name", [*CASES, *POSITIONS])
def test_every_feature(name):
    # gelu is not 0 at masked positions, and has both signs
    check((CASES | POSITIONS)[name].but(tile=TILE), "gelu")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 16, 17, 40])
def test_windows_across_blocks(window, causal):
    case = Case(b=1, t=70, s=75, window=window, causal=causal, lengths=(72,), offset=(1, 2, 1, 1))
    check(case.but(tile=TILE), "gelu")


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (35,), (2, 1, 1, 35), (1, 2, 37, 1), (37, 35), (2, 2, 37, 35)]
)
def test_gradients_of_a_shared_bias(shape):
    check(Case(t=37, s=35, bias=shape, tau=True, tile=TILE), "sigmoid")


@pytest.mark.parametrize("d", [1, 16, 31, 72, 128, 256])
def test_head_dims(d):
    check(Case(b=1, t=5, s=18, d=d, dv=d, causal=True, tile=TILE), "sigmoid")


@pytest.mark.parametrize("h", H)
@pytest.mark.parametrize("name", ["odd sizes", "all"])
def test_every_h(name, h):
    check(CASES[name].but(tile=TILE), h)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, causal):
    t, s, d, dv = SIZES[size]
    case = Case(b=1, t=t, s=s, d=d, dv=dv, causal=causal, tau=True, offset=(1, 2, 1, 1))
    check(case.but(tile=TILE), "softplus")


TILES = {
    "tall": Tile(block_m=32, block_n=16),
    "broad": Tile(block_m=16, block_n=32, warps=8, stages=3),
    "descriptors": Tile(block_m=16, block_n=32, descriptors=1),
    "persistent": Tile(block_m=16, block_n=16, persistent=1),
    "all": Tile(block_m=32, block_n=32, descriptors=1, persistent=1),
}


@pytest.fixture
def described(monkeypatch):
    """Per launch that may take descriptors, whether it had them."""
    used = []
    for name in ("pointwise_forward", "pointwise_queries", "pointwise_keys"):

        class Spy:
            def __init__(self, kernel, at):
                self.kernel, self.at = kernel, at

            def __getitem__(self, grid):
                def launch(*args, **options):
                    used.append(args[self.at] is not None)
                    return self.kernel[grid](*args, **options)

                return launch

        at = 10 if name == "pointwise_forward" else 11
        monkeypatch.setattr(triton_launch, name, Spy(getattr(triton_launch, name), at))
    return used


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("causal", [False, True])
def test_tiles(tile, causal, described):
    case = Case(b=2, h=4, g=2, t=37, s=37, d=8, dv=16, keep=(1, 1, 37, 37), causal=causal)
    check(case.but(tile=tuple(TILES[tile].as_list()), transposed=True, empty_row=True), "gelu")
    assert described == [bool(TILES[tile].descriptors)] * 3


@pytest.mark.parametrize("d", [5, 8])
def test_descriptors_only_where_hardware_takes_them(d, described):
    case = Case(b=1, t=20, s=20, d=d, dv=d, tile=tuple(TILES["descriptors"].as_list()))
    check(case, "relu")
    assert described == [d * 4 % 16 == 0] * 3


@pytest.mark.parametrize("tile", ["tall", "descriptors"])
def test_what_lies_beyond_the_lengths_is_never_read(tile):
    case = Case(
        b=2, t=21, s=40, d=8, dv=8, lengths=(19, 33), offset=(1, 2, 1, 1), gain=(1, 2, 1, 1)
    )
    p = problems.problem(case)
    inputs, positions = on_device(p)
    rest = (SCALE, "sigmoid", False, TILES[tile].as_list())
    grad = p.grad.to(DEVICE)

    def run():
        out = triton_launch.pointwise(*inputs, *rest, *positions)
        return [out, *triton_launch.pointwise_backward(grad, *inputs, *rest, False, *positions)]

    clean = run()
    for x in inputs[1:3]:
        for b, n in enumerate(case.lengths):
            x[b, :, n:] = math.nan
    for got, want in zip(run(), clean, strict=True):
        assert torch.equal(got, want)


def test_a_tile_without_room_runs_with_one_stage(monkeypatch):
    stages, right = [], triton_launch.pointwise_forward

    class Tight:
        def __getitem__(self, grid):
            def launch(*args, **options):
                stages.append(options["num_stages"])
                if options["num_stages"] > 1:
                    raise OutOfResources(120_000, 101_376, "shared memory")
                return right[grid](*args, **options)

            return launch

    monkeypatch.setattr(triton_launch, "pointwise_forward", Tight())
    monkeypatch.setattr(triton_launch, "_TIGHT", set())
    q, k, v = (x.to(DEVICE) for x in torch.randn(3, 1, 2, 20, 8))
    tile = Tile(block_m=16, block_n=16, stages=3).as_list()
    with pytest.raises(OutOfResources):  # a search must see it
        triton_launch.pointwise(q, k, v, *[None] * 5, SCALE, "relu", False, tile)
    stages.clear()
    rest = (torch.zeros(20, 20, device=DEVICE), *[None] * 4, SCALE, "relu", False)
    first = triton_launch.pointwise(q, k, v, *rest, tile)
    # the second call knows
    again = triton_launch.pointwise(q, k, v, *rest, tile)
    assert torch.equal(first, again)
    assert stages == [3, 1, 1]


def test_addresses_beyond_two_to_the_31():
    # one item every 2^31 + 64 entries of memory that is never touched between them
    apart, (h, t, d) = 2**31 + 64, (2, 17, 16)
    torch.use_deterministic_algorithms(False)
    memory = torch.empty(apart + h * t * d, dtype=torch.float16, device=DEVICE)
    q, k, v = torch.randn(3, 2, h, t, d).half()
    far = memory.as_strided((2, h, t, d), (apart, t * d, d, 1))
    far.copy_(k)
    rest = (*[None] * 5, SCALE, "sigmoid", True, list(TILE))
    got = triton_launch.pointwise(q.to(DEVICE), far, v.to(DEVICE), *rest)
    assert torch.equal(
        got, triton_launch.pointwise(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), *rest)
    )
    # tokens far apart: offsets within a block pass 2^31
    step = 2**31 // 16 + 8
    rows = memory.as_strided((1, 1, t - 1, d), (0, 0, step, 1))
    rows.copy_(k[:1, :1, :16])
    args = (q[:1, :1].to(DEVICE), rows, v[:1, :1, :16].to(DEVICE), *rest)
    near = (q[:1, :1].to(DEVICE), k[:1, :1, :16].to(DEVICE), v[:1, :1, :16].to(DEVICE), *rest)
    assert torch.equal(triton_launch.pointwise(*args), triton_launch.pointwise(*near))


def test_the_same_bits_in_every_run():
    p = problems.problem(CASES["all"].but(t=37, s=35, keep=(2, 1, 37, 35), bias=(1, 4, 37, 35)))
    p.offset, p.gain = (torch.randn(1, 4, 37, 1) for _ in range(2))
    inputs, _ = on_device(p)
    rest = (SCALE, "gelu", True, list(TILE))
    assert triton_launch._Call(*inputs, *rest, None, None, 0).form.offset == 2
    runs = [
        [
            triton_launch.pointwise(*inputs, *rest),
            *triton_launch.pointwise_backward(
                padded(torch.ones(2, 4, 37, 5)), *inputs, *rest, True
            ),
        ]
        for _ in range(2)
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_the_hardware_tanh_is_the_same_function():
    # under the interpreter tanh is exact; on a GPU it is wrong by 2^-11
    case = Case(t=19, s=21, tau=True, offset=(1, 2, 1, 1), tile=TILE)
    terms = 1.0 if DEVICE == "cpu" else 2**-11 / 2e-6
    check(case, "sigmoid_tanh", terms=terms)


@pytest.mark.parametrize("h", ["sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision(dtype, h):
    # the weights are rounded to the dtype of v for the second dot: half an ulp of each product,
    # which the sum over keys cannot exceed by more than |p||v| does the result
    case = CASES["all"].but(t=19, s=21, keep=(2, 1, 19, 21), bias=(1, 4, 19, 21))
    check(case.but(offset=(1, 4, 19, 1), gain=(1, 4, 19, 1), tile=TILE), h, dtype, compute=dtype)


def test_weights_of_size_one_over_n_are_relatively_right():
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 300, 4)
    v = torch.ones(1, 1, 300, 2)
    offset = torch.full((1, 1, 1, 1), -math.log(300))
    on = [x.to(DEVICE) for x in (q, k, v)]
    got = triton_launch.pointwise(
        *on, None, None, None, offset.to(DEVICE), None, SCALE, "sigmoid", False, list(TILE)
    ).cpu()
    want = reference.pointwise(
        q, k, v, None, None, None, offset, scale=SCALE, h="sigmoid", causal=False
    )
    assert bool(((got - want).abs() <= 4e-6 * want.abs()).all())


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("h", H)
def test_extreme_logits(h):
    # +-300: exp2(-s) overflows float32, the weight does not
    q = torch.tensor([300.0, -300.0, 0.0]).view(1, 1, 3, 1)
    k, v = torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1)
    on = [x.to(DEVICE) for x in (q, k, v)]
    got = triton_launch.pointwise(
        *on, None, None, None, None, None, 1.0, h, False, list(TILE)
    ).cpu()
    want = reference.pointwise(q, k, v, None, None, None, None, scale=1.0, h=h, causal=False)
    assert_near(got, want)


# --- hydra ------------------------------------------------------------------------------------


def hydra(q, k, v, keep, causal, eps=1e-6, tile=TILE, gain=None):
    inputs = [padded(x) for x in (q, k, v, keep)]
    gain = None if gain is None else gain.detach().to(DEVICE)
    return hydra_triton_launch.hydra(*inputs, gain, causal, eps, list(tile)).cpu()


def check_hydra(b=2, h=2, t=6, s=6, d=4, causal=False, masked=None, dtype=torch.float32, **more):
    """Forward and every gradient against autograd through the float64 reference."""
    draw = torch.Generator().manual_seed(0)

    def heads(n):
        x = torch.randn(b, h, n, d, generator=draw).to(dtype)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if more.get("transposed") else x

    q, k, v, grad = heads(t), heads(s), heads(s), heads(t)
    gain = torch.randn(1, h, 1, d, generator=draw) if more.get("gain", True) else None
    keep = None if masked is None else torch.rand(masked, 1, 1, s, generator=draw) < 0.6
    if masked == 2:
        keep[-1] = False
    tile = more.get("tile", TILE)
    got = hydra(q, k, v, keep, causal, tile=tile, gain=gain)
    leaves = [x.double().requires_grad_() for x in (q, k, v, gain) if x is not None]
    wide = leaves[3] if gain is not None else None
    want = reference.hydra(*leaves[:3], keep, wide, causal=causal, eps=1e-6)
    assert got.dtype == dtype
    assert_near(got, want)
    if masked == 2:
        assert bool((got[-1] == 0).all())
    inputs = [padded(x) for x in (grad, q, k, v, keep)]
    moved = None if gain is None else gain.to(DEVICE)
    found = hydra_triton_launch.hydra_backward(*inputs, moved, causal, 1e-6, list(tile))
    wanted = torch.autograd.grad(want, leaves, grad.double())
    for name, x, y in zip(("q", "k", "v", "gain"), found, (*wanted, None), strict=False):
        if y is None:
            assert x.numel() == 0
        else:
            assert_near(x.cpu(), y, terms=GRADIENT, name=f"d{name}")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("masked", [None, 1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [1, 16, 37])
def test_hydra(t, causal, masked, transposed):
    check_hydra(t=t, s=t, causal=causal, masked=masked, transposed=transposed)


@pytest.mark.parametrize(("t", "s"), [(5, 40), (40, 5), (0, 5), (5, 0)])
def test_hydra_cross(t, s):
    check_hydra(t=t, s=s)


@pytest.mark.parametrize(("b", "h", "d"), [(1, 1, 2), (3, 3, 5), (1, 5, 33), (0, 2, 4)])
def test_hydra_features(b, h, d):
    check_hydra(b=b, h=h, d=d, t=19, s=19, causal=True, gain=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_computes_low_precision_inputs_in_float32(causal, dtype):
    check_hydra(t=19, s=19, causal=causal, masked=2, dtype=dtype)


@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_across_chunks(causal, warps):
    # 64 features in blocks of 16 to 64 tokens, several blocks a chunk
    tile = Tile(warps=warps).as_list()
    check_hydra(b=2, h=4, t=1100, s=1100, d=16, causal=causal, masked=2, tile=tile)


def test_hydra_of_zero_vectors_is_zero():
    x = torch.randn(1, 2, 20, 4)
    zero = torch.zeros_like(x)
    assert bool((hydra(zero, x, x, None, False) == 0).all())
    assert bool((hydra(x, zero, x, None, True) == 0).all())


def test_hydra_of_one_feature_has_no_gradient_of_q():
    # the norm of a number is its size: what is left of dq is rounding
    x = torch.randn(3, 1, 1, 20, 1)
    q, k, v = (padded(y) for y in x)
    want = reference.hydra(*x, None, causal=False, eps=1e-6)
    assert_near(hydra(*x, None, False), want)
    dq = hydra_triton_launch.hydra_backward(q, q, k, v, None, None, False, 1e-6, list(TILE))[0]
    assert float(dq.abs().max()) <= 1e-5 * float((x[0] * x[2]).abs().sum() / x[0].abs().min())


def test_causal_hydra_never_sees_a_later_chunk():
    # the last of three chunks changes by a lot: what precedes it must not be found by subtraction
    q, k, v = torch.randn(3, 1, 2, 48, 4)
    later = v.clone()
    later[:, :, 40:] = 1e8
    before = hydra(q, k, v, None, True)[:, :, :40]
    after = hydra(q, k, later, None, True)[:, :, :40]
    assert torch.equal(before, after)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("h", H)
def test_causal_pointwise_never_sees_a_later_key(h):
    q, k, v = torch.randn(3, 1, 2, 37, 4)
    after = []
    for size in (1.0, 1e3):
        changed = [torch.cat([x[:, :, :20], x[:, :, 20:] * size], 2).to(DEVICE) for x in (k, v)]
        args = (q.to(DEVICE), *changed, None, None, None, None, None, SCALE, h, True, list(TILE))
        after.append(triton_launch.pointwise(*args)[:, :, :20])
    assert torch.equal(*after)


# --- under the compiler, on a GPU alone: inductor cannot take the interpreter's kernels ---------

on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here: test_inner has the CPU's")


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(64, 192)

    def forward(self, x):
        q, k, v = (y.transpose(1, 2) for y in self.qkv(x).unflatten(-1, (3, 4, 16)).unbind(2))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2)


@on_a_gpu
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", ["full", "causal", "window", "grouped", "lengths"])
def test_default_tiles(name, d, dtype, described):
    changes = {
        "full": {},
        "causal": {"causal": True, "s": 300},
        "window": {"window": 70, "causal": True, "s": 300},
        "grouped": {"h": 4, "g": 2},
        "lengths": {"lengths": (270, 100)},
    }[name]
    case = Case(b=2, h=2, g=2, t=300, s=270, d=d, dv=d, offset=(1, 1, 1, 1), transposed=True)
    case = case.but(tile=tuple(default_tile(DEVICE, d, "backward", dtype).as_list()), **changes)
    check(case, "sigmoid", dtype, compute=dtype)
    if torch.cuda.get_device_capability() == (9, 0):
        assert described == [True] * 3


@on_a_gpu
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_last_bit_of_causal_rows_does_not_depend_on_later_keys(dtype):
    q, k, v = torch.randn(3, 1, 2, 300, 64, device=DEVICE).to(dtype)
    tile = default_tile(DEVICE, 64, dtype=dtype).as_list()
    after = []
    for size in (1.0, 1e3):
        changed = [torch.cat([x[:, :, :201], x[:, :, 201:] * size], 2) for x in (k, v)]
        args = (q, *changed, *[None] * 5, 0.125, "sigmoid", True, tile)
        after.append(triton_launch.pointwise(*args)[:, :, :201])
    assert torch.equal(*after)


@on_a_gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra"])
def test_compiled_with_inductor(form, mode):
    model = Attention().to(DEVICE, torch.bfloat16)
    example = torch.randn(2, 200, 64, device=DEVICE).bfloat16()
    plan = attnpass.Plan.create(model, example, form=form)
    options = {"plan": plan, "strict": True} | ({"mode": mode} if mode else {})
    compiled = torch.compile(model, backend="attnpass", options=options, fullgraph=True)
    plain = attnpass.convert(model, plan, example)
    for _ in range(3):
        x = torch.randn(2, 200, 64, device=DEVICE).bfloat16().requires_grad_()
        grads = []
        for run in (compiled, plain):
            out = run(x)
            grads.append([out, *torch.autograd.grad(out.float().square().sum(), x)])
        for got, want in zip(*grads, strict=True):
            assert float((got - want).float().norm() / want.float().norm()) < 2e-2


@on_a_gpu
def test_compiled_with_dynamic_shapes():
    model = Attention().to(DEVICE, torch.bfloat16)
    example = torch.randn(2, 200, 64, device=DEVICE).bfloat16()
    plan = attnpass.Plan.create(model, example, form="relu")
    options = {"plan": plan, "strict": True}
    compiled = torch.compile(model, backend="attnpass", options=options, dynamic=True)
    with torch.no_grad():
        for n in (200, 300, 1000):
            x = torch.randn(2, n, 64, device=DEVICE).bfloat16()
            got, want = compiled(x).float(), attnpass.convert(model, plan, x)(x).float()
            assert float((got - want).norm() / want.norm()) < 2e-2
