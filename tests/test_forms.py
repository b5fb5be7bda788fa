"""The forms as modules against float64 mathematics written from the design, not from the code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tolerance import GRADIENT, assert_near

from attnpass import Plan, convert, forms
from attnpass.errors import OptionError
from attnpass.forms.catalogue import build, default_length
from attnpass.forms.hydra import Hydra
from attnpass.forms.pointwise import Pointwise
from attnpass.forms.skipat import SkipAt
from attnpass.forms.softmax import Softmax
from attnpass.kernels.cpu import launch as cpu
from attnpass.kernels.tile import Tile
from attnpass.matching.legality import Traits, legality
from attnpass.site import FORMS, AttentionSite, Decline

ALL_H = ("sigmoid", "relu", "relu2", "gelu", "softplus", "identity", "relu6")
FUSED, ATEN = Tile(block_m=4, block_n=3), Tile("aten")
B, H, T, S, D, DV = 2, 4, 5, 7, 6, 3

# --- the mathematics --------------------------------------------------------------------------


def h_of(name, x):
    if name == "sigmoid":
        return 1 / (1 + torch.exp(-x))
    if name == "relu":
        return x.clamp_min(0)
    if name == "relu2":
        return x.clamp_min(0) ** 2
    if name == "gelu":
        return 0.5 * x * (1 + torch.special.erf(x / math.sqrt(2)))
    if name == "softplus":
        return torch.log1p(torch.exp(x))
    if name == "relu6":
        return x.clamp(0, 6)
    assert name == "identity"
    return x


def head_of_group(x, heads):
    """Query head i reads key/value head i // (H / G)."""
    group = heads // x.shape[1]
    return torch.stack([x[:, i // group] for i in range(heads)], dim=1)


def kept(q, k, keep, causal):
    full = torch.ones(q.shape[0], q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
    for t in range(q.shape[2]):
        if causal:
            full[:, :, t, t + 1 :] = False
    return full if keep is None else full & keep


def pointwise_by_hand(p, q, k, v, bias, keep, *, h, scale, causal, length, alpha):
    """``g L^-a h(tau s + b) v``, for sigmoid ``g sigmoid(tau s + b - log L) v``; p: parameters."""
    heads = q.shape[1]
    mask = kept(q, k, keep, causal)
    k = head_of_group(k - p["k0"][None, :, None, :], heads)
    v = head_of_group(v, heads)
    s = scale * torch.einsum("bhtd,bhsd->bhts", q, k)
    if bias is not None:
        s = s + bias
    if length == "keys":
        n = torch.full((1, 1, 1, 1), float(k.shape[2]), dtype=torch.float64)
    elif length == "visible":
        n = mask.sum(-1, keepdim=True).double().clamp_min(1)
    else:
        n = torch.full((1, 1, 1, 1), float(length), dtype=torch.float64)
    s = s * p["log_tau"].exp()[None, :, None, None] if "log_tau" in p else s
    s = s + p["b"][None, :, None, None]
    factor = p["gain"][None, :, None, None]
    if h == "sigmoid":
        s = s - n.log()
    else:
        factor = factor * n**-alpha
    weights = torch.where(mask, h_of(h, s), 0.0)
    return factor * torch.einsum("bhts,bhsd->bhtd", weights, v)


def softmax_by_hand(q, k, v, bias, keep, *, scale, causal, fill):
    heads = q.shape[1]
    k, v = head_of_group(k, heads), head_of_group(v, heads)
    s = scale * torch.einsum("bhtd,bhsd->bhts", q, k)
    s = s if bias is None else s + bias
    mask = kept(q, k, keep, causal)
    s = s.masked_fill(~mask, -math.inf if fill is None else fill)
    if fill is None:
        s = s.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    top = s.amax(-1, keepdim=True)
    e = torch.exp(s - top)
    weights = e / e.sum(-1, keepdim=True)
    if fill is None:
        weights = weights * mask.any(-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def hydra_by_hand(p, q, k, v, keep, *, causal, eps=1e-6):
    """Over rows of all D = H d features, one token after the other."""
    heads = q.shape[1]
    k, v = head_of_group(k, heads), head_of_group(v, heads)
    b, _, t, d = q.shape
    rows_q, rows_k, rows_v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))  # [B, N, D]

    def unit(x):
        return x / torch.sqrt((x * x).sum(-1, keepdim=True).clamp_min(eps))

    products = unit(rows_k) * rows_v
    if keep is not None:
        products = torch.where(keep[:, 0, 0, :, None], products, 0.0)
    out = []
    for i in range(t):
        seen = products[:, : i + 1] if causal else products
        out.append(unit(rows_q[:, i]) * seen.sum(1) * p["gain"])
    return torch.stack(out, 1).view(b, t, heads, d).transpose(1, 2)


def skipat_by_hand(p, z, keep, *, kernel, grid, prefix, causal):
    """Linear, GELU, (masked rows zeroed), depthwise convolution, GELU, Linear, ECA."""
    x = z[:, prefix:]
    b, n, _ = x.shape
    mask = torch.ones(b, n, dtype=torch.bool)
    if keep is not None:
        mask = keep[:, 0, 0, prefix:].expand(b, n)
    x = h_of("gelu", x @ p["up.weight"].T + p["up.bias"])
    x = x * mask[..., None]
    weight, half = p["conv.weight"], kernel // 2
    y = []
    for i in range(n):
        total = p["conv.bias"].expand(b, -1)
        if grid is None:
            first = i - (kernel - 1) if causal else i - half
            for j in range(kernel):
                if 0 <= first + j < n:
                    total = total + weight[:, 0, j] * x[:, first + j]
        else:
            row, column = divmod(i, grid[1])
            for dr in range(-half, half + 1):
                for dc in range(-half, half + 1):
                    r, c = row + dr, column + dc
                    if 0 <= r < grid[0] and 0 <= c < grid[1]:
                        total = total + weight[:, 0, dr + half, dc + half] * x[:, r * grid[1] + c]
        y.append(total)
    y = h_of("gelu", torch.stack(y, 1)) @ p["down.weight"].T + p["down.bias"]
    out = []
    for i in range(n):
        end = i + 1 if causal else n
        count = mask[:, :end].sum(1, keepdim=True).clamp_min(1)
        mean = (y[:, :end] * mask[:, :end, None]).sum(1) / count  # [B, D]
        left, right = F.pad(mean, (1, 0))[:, :-1], F.pad(mean, (0, 1))[:, 1:]
        w = p["eca.weight"][0, 0]
        out.append(y[:, i] * h_of("sigmoid", w[0] * left + w[1] * mean + w[2] * right))
    return torch.cat([z[:, :prefix], torch.stack(out, 1)], 1)


# --- what every module test does --------------------------------------------------------------


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(module, seed=1):
    """Every parameter off its start: a parameter that is ignored must show."""
    g = draw(seed)
    for x in module.parameters():
        x.data = x.data + 0.3 * torch.randn(x.shape, generator=g)
    return module


def attention_inputs(g=H, t=T, s=S, d=D, dv=D, dtype=torch.float32, seed=0):
    r = draw(seed)
    # [B, T, H, d] as models lay them out
    q = torch.randn(B, t, H, d, generator=r).to(dtype).transpose(1, 2)
    k = torch.randn(B, s, g, d, generator=r).to(dtype).transpose(1, 2)
    v = torch.randn(B, s, g, dv, generator=r).to(dtype).transpose(1, 2)
    return [x.detach().requires_grad_() for x in (q, k, v)]


def leaf(x):
    return None if x is None else x.detach().double().requires_grad_()


def check(module, inputs, by_hand, extra=None, terms=1.0, compute=None):
    """Forward, and the gradient of every input and parameter, none of which may be None."""
    wide = [leaf(x) for x in inputs]
    parameters = {n: leaf(p) for n, p in module.named_parameters()}
    out = module(*inputs) if extra is None else module(*inputs, *extra)
    want = by_hand(parameters, *wide)
    assert_near(out, want, terms=terms, compute=compute)
    grad = torch.randn(want.shape, generator=draw(9), dtype=torch.float64)
    module.zero_grad()
    for x in inputs:
        x.grad = None
    out.backward(grad.to(out.dtype))
    wanted = torch.autograd.grad(
        want, [*wide, *parameters.values()], grad.to(out.dtype).double(), allow_unused=True
    )
    got = {f"input {i}": x.grad for i, x in enumerate(inputs)}
    got |= {n: p.grad for n, p in module.named_parameters()}
    for (name, g), w in zip(got.items(), wanted, strict=True):
        assert g is not None, f"{name} received no gradient"
        w = torch.zeros_like(g, dtype=torch.float64) if w is None else w
        assert_near(g, w, terms=2 * GRADIENT, compute=compute, name=f"d {name}")
    return out


def keep_of(shape, seed=3):
    keep = torch.rand(shape, generator=draw(seed)) < 0.6
    keep[..., 0] = True
    return keep


def bias_of(shape, seed=4):
    return torch.randn(shape, generator=draw(seed))


# --- pointwise --------------------------------------------------------------------------------


def check_pointwise(
    *, h="sigmoid", g=H, causal=False, length="keys", alpha=1.0, tile=None, scale=0.5, **given
):
    bias, keep = given.get("bias"), given.get("keep")
    t, s = given.get("t", T), given.get("s", S)
    module = randomised(
        Pointwise(H, g, D, h=h, scale=scale, causal=causal, length=length, alpha=alpha, tile=tile)
    )
    q, k, v = attention_inputs(g, t, s, dv=given.get("dv", D))

    def by_hand(p, q, k, v):
        wide = None if bias is None else bias.double()
        options = {"h": h, "scale": D**-0.5 if scale is None else scale, "causal": causal}
        return pointwise_by_hand(p, q, k, v, wide, keep, length=length, alpha=alpha, **options)

    return check(module, [q, k, v], by_hand, (bias, keep), terms=2.0)


TILES = pytest.mark.parametrize("tile", [None, ATEN, FUSED], ids=["chosen", "aten", "fused"])


@TILES
@pytest.mark.parametrize("h", ALL_H)
def test_pointwise(h, tile):
    check_pointwise(h=h, tile=tile)


@TILES
@pytest.mark.parametrize("length", ["keys", "visible", 3, 197.5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("h", ["sigmoid", "relu"])
def test_pointwise_length(h, masked, causal, length, tile):
    keep = keep_of((B, 1, 1, S)) if masked else None
    check_pointwise(h=h, length=length, causal=causal, keep=keep, tile=tile)


@pytest.mark.parametrize("t", [3, 11])
def test_pointwise_visible_length_of_causal_cross_lengths(t):
    check_pointwise(h="relu", length="visible", causal=True, t=t)


@pytest.mark.parametrize(
    "shape",
    [(S,), (T, S), (B, 1, 1, S), (1, 1, T, S), (B, H, T, S), (1, H, 1, S), (B, 1, T, 1)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_pointwise_visible_length_of_every_keep_shape(causal, shape):
    check_pointwise(h="relu", length="visible", causal=causal, keep=keep_of(shape))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("h", ["relu", "gelu"])
def test_pointwise_alpha(h, alpha):
    check_pointwise(h=h, alpha=alpha)
    check_pointwise(h=h, alpha=alpha, length="visible", causal=True)


def test_sigmoid_ignores_alpha():
    q, k, v = attention_inputs()
    one, two = (Pointwise(H, H, D, h="sigmoid", alpha=a) for a in (0.0, 2.0))
    assert torch.equal(one(q, k, v), two(q, k, v))


@TILES
@pytest.mark.parametrize("g", [1, 2, 4])
def test_pointwise_grouped(g, tile):
    check_pointwise(h="gelu", g=g, tile=tile)


@TILES
@pytest.mark.parametrize("shape", [(S,), (H, T, S), (1, H, T, S), (B, 1, 1, S)])
def test_pointwise_bias(shape, tile):
    check_pointwise(h="sigmoid", bias=bias_of(shape), tile=tile)
    check_pointwise(h="relu", bias=bias_of(shape), causal=True, keep=keep_of((B, 1, 1, S)))


@TILES
def test_pointwise_value_dim_and_default_scale(tile):
    check_pointwise(h="softplus", dv=DV, scale=None, tile=tile)


@TILES
def test_pointwise_bias_receives_its_gradient(tile):
    module = randomised(Pointwise(H, H, D, h="gelu", scale=0.5, tile=tile))
    q, k, v = attention_inputs()
    bias = bias_of((1, H, T, S)).requires_grad_()

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, q, k, v, bias):
            return self.inner(q, k, v, bias)

    def by_hand(p, q, k, v, bias):
        p = {n.removeprefix("inner."): x for n, x in p.items()}
        return pointwise_by_hand(
            p, q, k, v, bias, None, h="gelu", scale=0.5, causal=False, length="keys", alpha=1.0
        )

    check(Last(), [q, k, v, bias], by_hand, terms=2.0)


@pytest.mark.parametrize("h", ALL_H)
def test_pointwise_parameters(h):
    module = Pointwise(4, 2, 6, h=h)
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    expected = {"b": (4,), "gain": (4,), "k0": (2, 6)}
    # a temperature is redundant with the gain where h is homogeneous
    if h not in ("relu", "relu2", "identity"):
        expected["log_tau"] = (4,)
    assert shapes == expected
    starts = {n: set(p.flatten().tolist()) for n, p in module.named_parameters()}
    assert starts == {n: {1.0} if n == "gain" else {0.0} for n in expected}


@TILES
@pytest.mark.parametrize("h", ALL_H)
def test_pointwise_without_parameters_equals_their_start(h, tile):
    q, k, v = attention_inputs()
    options = {"h": h, "causal": True, "length": "visible", "tile": tile}
    constant = Pointwise(H, H, D, trainable=False, **options)
    assert not list(constant.parameters())
    assert_near(constant(q, k, v), Pointwise(H, H, D, **options)(q, k, v).double())


def test_temperature_is_positive_whatever_the_parameter():
    module = Pointwise(H, H, D, h="sigmoid", scale=1.0)
    module.log_tau.data.fill_(-3.0)
    q, k, v = attention_inputs()
    sharp = Pointwise(H, H, D, h="sigmoid", scale=math.exp(-3.0))
    assert_near(module(q, k, v), sharp(q, k, v).double())


@TILES
@pytest.mark.parametrize("h", ALL_H)
@pytest.mark.parametrize("length", ["keys", "visible", 5])
def test_pointwise_of_no_keys_is_zero(length, h, tile):
    module = Pointwise(H, H, D, h=h, length=length, tile=tile)
    q, k, v = attention_inputs(s=0)
    out = module(q, k, v)
    assert out.shape == (B, H, T, D)
    assert bool((out == 0).all())


@pytest.mark.parametrize("h", ALL_H)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pointwise_low_precision(dtype, h):
    # q k^T, h and the sums in float32; the C++ kernel rounds bfloat16 weights, as eager does
    module = Pointwise(H, H, D, h=h, scale=0.5, length="visible", causal=True)
    module.gain.data.fill_(1.3)
    q, k, v = attention_inputs(dtype=dtype)
    out = module(q, k, v)
    p = {n: x.detach().double() for n, x in module.named_parameters()}
    want = pointwise_by_hand(
        p,
        *(x.detach().double() for x in (q, k, v)),
        None,
        None,
        h=h,
        scale=0.5,
        causal=True,
        length="visible",
        alpha=1.0,
    )
    assert out.dtype == dtype
    assert_near(out, want, compute=dtype if dtype == torch.bfloat16 else None)


def test_the_sum_over_keys_may_exceed_float16_if_the_mean_does_not():
    # 600 keys of weight 8 and value 16: the sum 76800 overflows float16, the result 128 does not
    q = torch.full((1, 1, 1, 4), 2.0, dtype=torch.float16)
    k, v = torch.ones(2, 1, 1, 600, 4, dtype=torch.float16)
    out = Pointwise(1, 1, 4, h="relu", scale=1.0)(q, k, v * 16)
    assert_near(out, torch.full((1, 1, 1, 4), 128.0, dtype=torch.float64))


@pytest.mark.parametrize("h", ["swish", "", "softmax", "Sigmoid"])
def test_unknown_h(h):
    with pytest.raises(OptionError, match=rf"expected h in .*'sigmoid'.*, got {h!r}"):
        Pointwise(H, H, D, h=h)


@pytest.mark.parametrize("length", ["max", "", 0, -1, 0.0, math.nan, None, [3]])
def test_unknown_length(length):
    with pytest.raises(OptionError, match="expected L to be 'keys', 'visible' or a number > 0"):
        Pointwise(H, H, D, h="relu", length=length)


# --- softmax ----------------------------------------------------------------------------------


def check_softmax(*, g=H, causal=False, fill=None, scale=0.5, dtype=torch.float32, **given):
    bias, keep = given.get("bias"), given.get("keep")
    module = Softmax(scale=scale, causal=causal, fill=fill)
    assert not list(module.parameters())
    q, k, v = attention_inputs(g, given.get("t", T), given.get("s", S), dv=given.get("dv", D))

    def by_hand(_, q, k, v):
        wide = None if bias is None else bias.double()
        return softmax_by_hand(q, k, v, wide, keep, scale=scale, causal=causal, fill=fill)

    return check(module, [q, k, v], by_hand, (bias, keep), terms=2.0)


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [None, (S,), (H, T, S), (1, H, T, S)])
@pytest.mark.parametrize("keep", [None, (B, 1, 1, S), (1, 1, T, S), (B, H, T, S)])
@pytest.mark.parametrize("fill", [None, -math.inf, LOWEST])
def test_softmax(fill, keep, bias, causal):
    check_softmax(
        causal=causal,
        fill=fill,
        bias=None if bias is None else bias_of(bias),
        keep=None if keep is None else keep_of(keep),
    )


@pytest.mark.parametrize("g", [1, 2])
def test_softmax_grouped(g):
    check_softmax(g=g, causal=True)
    check_softmax(g=g, keep=keep_of((B, 1, 1, S)), bias=bias_of((1, H, T, S)))


@pytest.mark.parametrize(("t", "s"), [(1, 1), (3, 8), (8, 3)])
def test_softmax_sizes(t, s):
    check_softmax(t=t, s=s, dv=DV)
    check_softmax(t=t, s=s, causal=True)


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        *[(f, d) for f in (None, -math.inf, LOWEST) for d in (torch.float32, torch.bfloat16)],
        (torch.finfo(torch.float64).min, torch.float32),
        (torch.finfo(torch.float64).min, torch.float64),
        (-1e9, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [None, (1, H, T, S)])
def test_softmax_of_a_fully_masked_row_is_what_the_fill_makes_it(fill, bias, dtype):
    # boolean SDPA: 0; -inf: NaN; a finite fill sets all logits alike: the mean of v
    keep = torch.ones(B, 1, T, S, dtype=torch.bool)
    keep[1, :, 2] = False
    bias = None if bias is None else bias_of(bias).to(dtype)
    q, k, v = (x.detach() for x in attention_inputs(dtype=dtype))
    out = Softmax(scale=0.5, fill=fill)(q, k, v, bias, keep)[1, :, 2]
    if fill is None:
        assert bool((out == 0).all())
    elif fill == -math.inf:
        assert bool(out.isnan().all())
    else:
        assert_near(out, v[1].double().mean(1), terms=2.0)


class Masked(torch.nn.Module):
    """Self attention whose padding is masked by setting logits, or by adding to them."""

    def __init__(self, how, fill):
        super().__init__()
        self.how, self.fill = how, fill
        self.q, self.k, self.v = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, keep):
        b, t, _ = x.shape
        projections = (self.q, self.k, self.v)
        q, k, v = (f(x).view(b, t, 2, 4).transpose(1, 2) for f in projections)
        s = q @ k.transpose(-1, -2) * 0.5
        mask = keep[:, None, None, :]
        if self.how == "set":
            s = s.masked_fill(~mask, self.fill)
        else:
            s = s + torch.where(mask, 0.0, self.fill)
        return (s.softmax(-1) @ v).transpose(1, 2).reshape(b, t, 8)


@pytest.mark.parametrize("how", ["set", "add"])
@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        (LOWEST, torch.float32),
        (-1e4, torch.float32),
        (-1e9, torch.float32),
        (-1e9, torch.float64),
        (-1e4, torch.float64),
    ],
)
def test_softmax_round_trip_of_a_fully_masked_item(fill, dtype, how):
    # setting -1e4 gives the mean of v; adding it leaves the logits' differences as they are
    model = Masked(how, fill).to(dtype).eval()
    x = torch.randn(2, 6, 8, generator=draw(2)).to(dtype)
    keep = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    plan = Plan.create(model, x, keep, form="softmax")
    assert len(plan.sites) == 1
    plan.round_trip = True
    converted = convert(model, plan, x, keep)
    assert_near(converted(x, keep), model(x, keep).double(), terms=2.0)


def test_softmax_drops_with_the_given_probability():
    q, k, v = attention_inputs(t=40, s=40)
    torch.manual_seed(0)
    out = Softmax(scale=0.5, dropout=0.5)(q, k, torch.ones_like(v))
    assert out.std() > 0.05
    assert (out.mean() - 1).abs() < 0.1


# --- hydra ------------------------------------------------------------------------------------


@TILES
@pytest.mark.parametrize("g", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keep", [None, (B, 1, 1, T), (1, 1, 1, T)])
def test_hydra(keep, causal, g, tile):
    keep = None if keep is None else keep_of(keep)
    module = randomised(Hydra(H, D, causal=causal, tile=tile))

    def by_hand(p, q, k, v):
        return hydra_by_hand(p, q, k, v, keep, causal=causal)

    check(module, attention_inputs(g, T, T), by_hand, (None, keep), terms=2.0)


@TILES
def test_hydra_cross(tile):
    module = randomised(Hydra(H, D, tile=tile))
    keep = keep_of((B, 1, 1, S))

    def by_hand(p, q, k, v):
        return hydra_by_hand(p, q, k, v, keep, causal=False)

    check(module, attention_inputs(2), by_hand, (None, keep), terms=2.0)


@TILES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_hydra_low_precision(dtype, tile):
    module = randomised(Hydra(H, D, tile=tile))
    q, k, v = attention_inputs(dtype=dtype)
    out = module(q, k, v)
    p = {n: x.detach().double() for n, x in module.named_parameters()}
    wide = (x.detach().double() for x in (q, k, v))
    assert out.dtype == dtype
    assert_near(out, hydra_by_hand(p, *wide, None, causal=False))


def test_hydra_parameters():
    module = Hydra(3, 5)
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {"gain": (15,)}
    assert set(module.gain.tolist()) == {1.0}
    constant = Hydra(H, D, trainable=False)
    assert not list(constant.parameters())
    q, k, v = attention_inputs()
    assert torch.equal(constant(q, k, v), Hydra(H, D)(q, k, v))


@TILES
def test_hydra_of_zero_vectors_is_zero_and_has_a_gradient(tile):
    q, k, v = (torch.zeros(1, H, T, D, requires_grad=True) for _ in range(3))
    out = Hydra(H, D, tile=tile)(q, k, v)
    out.sum().backward()
    assert bool((out == 0).all())
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))


def test_hydra_takes_no_bias():
    q, k, v = attention_inputs()
    with pytest.raises(OptionError, match="expected no bias with hydra, got one"):
        Hydra(H, D)(q, k, v, bias_of((S,)))


@pytest.mark.parametrize("shape", [(S,), (T, S), (B, 1, T, S), (B, H, 1, S)])
def test_hydra_takes_no_mask_that_depends_on_the_query(shape):
    q, k, v = attention_inputs()
    with pytest.raises(OptionError, match=r"expected a key-padding mask .* got \("):
        Hydra(H, D)(q, k, v, None, keep_of(shape))


# --- skipat -----------------------------------------------------------------------------------

WIDTH = 8


@pytest.mark.parametrize("r", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("grid", "prefix", "causal"),
    [
        (None, 0, False),
        (None, 0, True),
        (None, 2, False),
        ((2, 4), 0, False),
        ((4, 2), 1, False),
        ((2, 4), 0, True),
    ],
)
def test_skipat(grid, prefix, causal, masked, kernel, r):
    module = randomised(SkipAt(WIDTH, r=r, kernel=kernel, grid=grid, prefix=prefix, causal=causal))
    tokens = 8 + prefix
    z = torch.randn(B, tokens, WIDTH, generator=draw()).requires_grad_()
    keep = keep_of((B, 1, 1, tokens)) if masked else None
    # a causal site is a sequence, whatever its grid
    plane = None if causal else grid

    def by_hand(p, z):
        return skipat_by_hand(p, z, keep, kernel=kernel, grid=plane, prefix=prefix, causal=causal)

    out = check(module, [z], by_hand, (keep,), terms=4.0)
    assert torch.equal(out[:, :prefix], z[:, :prefix])


def test_skipat_keep_of_one_row_for_all_items():
    module = randomised(SkipAt(WIDTH, r=1.0, kernel=3))
    z = torch.randn(B, 8, WIDTH, generator=draw()).requires_grad_()
    keep = keep_of((1, 1, 1, 8))

    def by_hand(p, z):
        return skipat_by_hand(p, z, keep, kernel=3, grid=None, prefix=0, causal=False)

    check(module, [z], by_hand, (keep,), terms=4.0)


def test_skipat_of_r_0_is_the_identity():
    module = SkipAt(WIDTH, r=0.0)
    assert not list(module.parameters())
    z = torch.randn(B, 5, WIDTH)
    assert torch.equal(module(z), z)


def test_skipat_start_is_reproducible_and_leaves_the_random_state():
    state = torch.get_rng_state()
    one, two, other = (SkipAt(WIDTH, r=1.0, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name, x in one.state_dict().items():
        assert torch.equal(x, two.state_dict()[name])
        assert not torch.equal(x, other.state_dict()[name])


@pytest.mark.parametrize("causal", [False, True])
def test_skipat_means_over_tokens_are_float32(causal):
    # 400 tokens of 200 sum to 80000, beyond float16; their mean is not
    module = SkipAt(WIDTH, r=1.0, kernel=3, causal=causal)
    module.down.bias.data.fill_(200.0)
    z = torch.randn(1, 400, WIDTH, generator=draw())
    p = {n: x.detach().half().double() for n, x in module.named_parameters()}
    want = skipat_by_hand(p, z.half().double(), None, kernel=3, grid=None, prefix=0, causal=causal)
    assert_near(module.half()(z.half()), want, terms=2.0, compute=torch.float16)


@pytest.mark.parametrize(("r", "kernel"), [(-1.0, 5), (1.0, 4), (1.0, 0), (1.0, -3)])
def test_skipat_options(r, kernel):
    with pytest.raises(OptionError, match=rf"expected r >= 0 .* got r={r}, kernel={kernel}"):
        SkipAt(WIDTH, r=r, kernel=kernel)


# --- options and build ------------------------------------------------------------------------


def site(**changes):
    given = {
        "name": "blocks.0.attn",
        "kind": "self",
        "heads": H,
        "kv_heads": 2,
        "head_dim": D,
        "value_dim": D,
        "query_len": T,
        "key_len": S,
        "scale": 0.3,
        "width": WIDTH,
    }
    return AttentionSite(**(given | changes))


def test_unknown_form():
    with pytest.raises(OptionError, match="expected a form of softmax, .*, got 'performer'"):
        build("performer", site())


@pytest.mark.parametrize("form", FORMS)
def test_unknown_option(form):
    with pytest.raises(OptionError, match=rf"expected options of form {form} .*, got typo"):
        build(form, site(), {"typo": 1})


def test_options_of_another_form_are_unknown():
    for form, option in (("softmax", "L"), ("sigmoid", "alpha"), ("sigmoid", "h"), ("hydra", "r")):
        with pytest.raises(OptionError, match=f"got {option}"):
            build(form, site(), {option: 1})


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("sigmoid", {"approximate": "fast"}),
        ("sigmoid", {"L": 0}),
        ("sigmoid", {"L": ""}),
        ("relu", {"L": 0.0}),
        ("relu", {"L": -3}),
        ("relu", {"h": "swish"}),
        ("relu", {"alpha": "x"}),
        ("relu", {"alpha": math.nan}),
        ("skipat", {"r": -1}),
        ("skipat", {"r": "x"}),
        ("skipat", {"kernel": 2}),
        ("skipat", {"r": 1.0, "kernel": 3.0}),
    ],
    ids=str,
)
def test_values_out_of_range(form, options):
    with pytest.raises(OptionError, match="expected .* got "):
        build(form, site(), options)


def test_the_approximate_sigmoid_is_the_same_module_but_for_the_operator(monkeypatch):
    given = []
    monkeypatch.setattr(cpu, "pointwise", spied(given, cpu.pointwise))
    at = site(kv_heads=H)
    q, k, v = torch.randn(3, 2, H, 40, D).bfloat16()
    outs = [build("sigmoid", at, {"approximate": x})(q, k, v) for x in ("none", "tanh")]
    assert given == ["sigmoid", "sigmoid_tanh"]
    # a CPU computes both exactly
    assert torch.equal(*outs)


def spied(given, right):
    def spy(*args):
        given.append(args[9])
        return right(*args)

    return spy


@pytest.mark.parametrize(
    ("mask", "length"),
    [
        ((), "keys"),
        (("window",), "keys"),
        (("arbitrary",), "keys"),
        (("causal",), "visible"),
        (("padding",), "visible"),
        (("causal", "padding"), "visible"),
        (("padding", "arbitrary"), "visible"),
    ],
)
@pytest.mark.parametrize("form", ["sigmoid", "relu"])
def test_default_length(form, mask, length):
    at = site(mask=frozenset(mask))
    assert default_length(at) == length
    assert build(form, at).length == length
    assert build(form, at, {"L": "keys"}).length == "keys"
    assert build(form, at, {"L": 7}).length == 7


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["sigmoid", "relu"])
def test_build_pointwise(form, causal):
    at = site(mask=frozenset({"causal"} if causal else ()))
    module = randomised(build(form, at))
    length = "visible" if causal else "keys"

    def by_hand(p, q, k, v):
        return pointwise_by_hand(
            p, q, k, v, None, None, h=form, scale=0.3, causal=causal, length=length, alpha=1.0
        )

    check(module, attention_inputs(2), by_hand, terms=2.0)


def test_build_relu_with_all_options():
    module = randomised(build("relu", site(), {"h": "gelu", "alpha": 0.5, "L": 11}))

    def by_hand(p, q, k, v):
        return pointwise_by_hand(
            p, q, k, v, None, None, h="gelu", scale=0.3, causal=False, length=11, alpha=0.5
        )

    check(module, attention_inputs(2), by_hand, terms=2.0)


@pytest.mark.parametrize("form", ["sigmoid", "relu", "softmax"])
def test_build_where_the_scale_was_folded_into_q(form):
    q, k, v = attention_inputs(2)
    assert_near(
        build(form, site(scale=None))(q, k, v), build(form, site(scale=1.0))(q, k, v).double()
    )


def test_build_softmax():
    at = site(mask=frozenset({"causal", "padding"}), fill=LOWEST, dropout=0.0)
    keep = keep_of((B, 1, 1, S))
    module = build("softmax", at)

    def by_hand(_, q, k, v):
        return softmax_by_hand(q, k, v, None, keep, scale=0.3, causal=True, fill=LOWEST)

    check(module, attention_inputs(2), by_hand, (None, keep), terms=2.0)
    assert build("softmax", site(dropout=0.25)).dropout == 0.25


@pytest.mark.parametrize("causal", [False, True])
def test_build_hydra(causal):
    module = randomised(build("hydra", site(mask=frozenset({"causal"} if causal else ()))))

    def by_hand(p, q, k, v):
        return hydra_by_hand(p, q, k, v, None, causal=causal)

    check(module, attention_inputs(2, T, T), by_hand, terms=2.0)


@pytest.mark.parametrize(
    ("changes", "grid", "prefix", "causal"),
    [
        ({"grid": (2, 4), "prefix": 1}, (2, 4), 1, False),
        ({"mask": frozenset({"causal"})}, None, 0, True),
        ({"mask": frozenset({"padding"})}, None, 0, False),
    ],
)
def test_build_skipat(changes, grid, prefix, causal):
    module = randomised(build("skipat", site(**changes), {"r": 2.0, "kernel": 3}))
    z = torch.randn(B, 8 + prefix, WIDTH, generator=draw()).requires_grad_()

    def by_hand(p, z):
        return skipat_by_hand(p, z, None, kernel=3, grid=grid, prefix=prefix, causal=causal)

    check(module, [z], by_hand, terms=4.0)


def test_build_skipat_is_the_identity_by_default():
    z = torch.randn(B, 5, WIDTH)
    assert torch.equal(build("skipat", site())(z), z)


@pytest.mark.parametrize("form", FORMS)
def test_build_without_parameters(form):
    assert not list(build(form, site(), trainable=False).parameters())


@pytest.mark.parametrize("form", ["sigmoid", "relu"])
def test_build_passes_the_measured_tiles(form):
    tiles = {"a class": FUSED}
    assert build(form, site(), tiles=tiles).tiles is tiles


def test_options_have_a_row_for_every_form():
    assert tuple(forms.OPTIONS) == FORMS


# --- legality: the table of the design, row by row --------------------------------------------

AT = Decline("", "blocks.0.attn", "model.py:7", node="softmax_1")
# a self attention that every form can express, its source layer included
BASE = {"previous": True}
P, C = frozenset({"padding"}), frozenset({"causal"})

# row: (traits, allow, code of each declined form); a form that is not named is legal
TABLE = {
    "nothing special": ({}, (), {}),
    "additive bias": ({"bias": True}, (), {"hydra": "BIAS_NOT_SUPPORTED"}),
    "key padding": ({"mask": P}, (), {}),
    "causal": ({"mask": C}, (), {}),
    "causal and padding": ({"mask": P | C}, (), {}),
    "causal, T != S": ({"mask": C, "same_len": False}, (), {"hydra": "MASK_ARBITRARY"}),
    "padding, T != S": ({"mask": P, "same_len": False}, (), {}),
    "window": (
        {"mask": frozenset({"window"})},
        (),
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    "arbitrary": (
        {"mask": frozenset({"arbitrary"})},
        (),
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    "packed, causal": (
        {"mask": C | {"packed"}},
        (),
        {"hydra": "MASK_ARBITRARY", "skipat": "MASK_ARBITRARY"},
    ),
    # the softmax node alone is swapped, also for softmax itself
    "soft cap": ({"softcap": True}, (), {"hydra": "SOFTCAP"}),
    "talking heads": (
        {"mixed": True},
        (),
        {"hydra": "TALKING_HEADS", "skipat": "TALKING_HEADS"},
    ),
    "sink": ({"sink": True}, (), {"hydra": "SINK"}),
    "weights used elsewhere": (
        {"escapes": "mean_2"},
        (),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "PROBS_ESCAPE"),
    ),
    "weights used elsewhere, others allowed": (
        {"escapes": "mean_2"},
        ("other_weights",),
        dict.fromkeys(("hydra", "skipat"), "PROBS_ESCAPE"),
    ),
    "weights used elsewhere, dropout allowed": (
        {"escapes": "mean_2"},
        ("drop_dropout",),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "PROBS_ESCAPE"),
    ),
    "dropout": (
        {"dropout": 0.1},
        (),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "DROPOUT_TRAINING"),
    ),
    "dropout, allowed": ({"dropout": 0.1}, ("drop_dropout",), {}),
    "dropout, other weights allowed": (
        {"dropout": 0.1},
        ("other_weights",),
        dict.fromkeys(("sigmoid", "relu", "hydra", "skipat"), "DROPOUT_TRAINING"),
    ),
    "key/value cache": ({"cached": True}, (), {"hydra": "CROSS_GRAPH", "skipat": "CROSS_GRAPH"}),
    "cross": ({"kind": "cross", "same_len": False}, (), {"skipat": "NOT_ATTENTION:cross"}),
    "value dim": ({"value_dim_differs": True}, (), {"hydra": "NEEDS_PARAMS"}),
    "first layer": ({"previous": False}, (), {"skipat": "CROSS_GRAPH"}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", TABLE)
def test_legality(row, form):
    traits, allow, declined = TABLE[row]
    found = legality(Traits(**(BASE | traits)), AT, allow)
    assert set(found) == set(FORMS)
    decline = found[form]
    assert (decline and decline.code) == declined.get(form)


@pytest.mark.parametrize("row", TABLE)
def test_every_decline_says_where_and_why(row):
    traits, allow, _ = TABLE[row]
    for decline in legality(Traits(**(BASE | traits)), AT, allow).values():
        if decline is not None:
            assert (decline.path, decline.source) == ("blocks.0.attn", "model.py:7")
            assert decline.node == (traits.get("escapes") or "softmax_1")
            assert decline.hint


def test_a_hint_offers_only_what_would_help():
    # hydra and skipat have no weights to return: no permission makes them legal
    found = legality(Traits(previous=True, escapes="mean_2"), AT)
    offered = {form for form, d in found.items() if d and "other_weights" in d.hint}
    assert offered == {"sigmoid", "relu"}
