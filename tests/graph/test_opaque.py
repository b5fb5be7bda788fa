"""Regions that cannot be re-traced (cond, scan, flex) are kept; attention beside them is not."""

import pytest
import torch
from nested import (
    BOUND,
    Attention,
    error,
)
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as higher_order_map
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import attnpass
from attnpass import Plan


def branch(layer, x):
    return torch.cond(x.sum() > -1e9, layer, lambda y: y + 1, (x,))


def mapped(layer, x):
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
    out = torch.vmap(lambda *one: nn.functional.scaled_dot_product_attention(*one))(q, k, v)
    return x + layer.o(out.transpose(1, 2).flatten(2))


def each(layer, x):
    return higher_order_map(lambda y: layer(y[None])[0], x)


def scanned(layer, x):
    def step(carry, y):
        return carry + 0.1 * y, layer(y[None] + carry)[0]

    return scan(step, torch.zeros_like(x[0]), x)[1]


def repeated(layer, x):
    def step(i, y):
        return i + 1, layer(y)

    return while_loop(lambda i, y: i < 2, step, (torch.zeros((), dtype=torch.int64), x))[1]


def by_hand(layer, x):
    """Softmax by hand, which no name gives away."""

    def attend(y):
        q, k, v = layer.qkv(y).chunk(3, -1)
        e = (q @ k.mT * 0.25).exp()
        return y + layer.o(e / e.sum(-1, keepdim=True) @ v)

    return torch.cond(x.sum() > -1e9, attend, lambda y: y + 1, (x,))


def flexible(layer, x):
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
    out = flex_attention(q, k, v, lambda s, *_: 9 * torch.tanh(s / 9))
    return x + layer.o(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("how", "code", "name"),
    [
        (branch, "HOP_UNSUPPORTED", "inside cond"),
        (by_hand, "HOP_UNSUPPORTED", "inside cond"),
        (mapped, "HOP_UNSUPPORTED", "inside vmap"),
        (each, "HOP_UNSUPPORTED", "inside map"),
        (scanned, "HOP_UNSUPPORTED", "inside scan"),
        (repeated, "HOP_UNSUPPORTED", "inside while_loop"),
        (flexible, "FLEX", "does more"),
    ],
    ids=["cond", "by hand", "vmap", "map", "scan", "while", "flex"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_regions_that_are_kept_as_they_are(how, code, name):
    """One attention inside a kept region, one beside it: the other is rewritten."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.free = Attention(), Attention()

        def forward(self, x):
            return self.free(how(self.kept, x))

    torch.manual_seed(0)
    model = Both().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        plan = Plan.create(model, x, form="relu")
        assert [*plan.sites] == ["free"]
        capture = attnpass.Capture(model).trace(x)
        capture.use(plan)
        formed = capture(x)
        assert error([formed], [want]) > 1e-3
        for inner in ("eager", "aot_eager"):
            torch._dynamo.reset()
            attnpass.reset_report()
            run = torch.compile(model, backend="attnpass", options={"inner": inner, "plan": plan})
            assert error([run(x)], [formed]) < BOUND
            (declined,) = attnpass.compiled_report().declined
            assert declined.code == code and name in declined.hint
            assert any(x in declined.source for x in ("nested.py", "test_opaque.py", "flex"))


@pytest.mark.parametrize("how", [branch, by_hand, mapped, each, scanned, repeated])
def test_a_kept_region_has_the_results_and_gradients_of_eager(how):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = Attention().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    run = torch.compile(
        lambda y: how(layer, y), backend="attnpass", options={"inner": "eager", "form": "relu"}
    )
    leaves = [x, *layer.parameters()]
    found = [(y, *torch.autograd.grad(y.sin().sum(), leaves)) for y in (run(x), how(layer, x))]
    assert error(*found) < BOUND


def combined(layer, x):
    """What ``associative_scan`` combines is mapped, and opened."""

    def both(a, b):
        q, k, v = layer.qkv(a + b).chunk(3, -1)
        return a + layer.o((q @ k.mT * 0.25).softmax(-1) @ v)

    return associative_scan(both, x, 0, combine_mode="generic")


def test_attention_that_is_scanned_associatively_is_found():
    torch.manual_seed(0)
    torch._dynamo.reset()

    class Combined(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Attention()

        def forward(self, x):
            return combined(self.layer, x)

    model, x = Combined().double().eval(), torch.randn(3, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        report = attnpass.find_sites(model, x)
        assert report.sites and not report.declined
        options = {"inner": "aot_eager", "form": "softmax", "strict": True}
        run = torch.compile(model, backend="attnpass", options=options)
        assert error([run(x)], [model(x)]) < BOUND


def enters(layer, x):
    """The weights meet the values inside of a region."""
    q, k, v = layer.qkv(x).chunk(3, -1)
    p = (q @ k.mT).softmax(-1)
    return torch.cond(x.sum() > -1e9, lambda w, y: w @ y, lambda w, y: w @ (y + 1), (p, v))


def comes_out(layer, x):
    """The logits are computed inside of a region."""
    q, k, v = (y.clone() for y in layer.qkv(x).chunk(3, -1))
    s = torch.cond(x.sum() > -1e9, lambda a, b: a @ b.mT, lambda a, b: a @ b.mT + 1, (q, k))
    return s.softmax(-1) @ v


@pytest.mark.parametrize(
    ("how", "why"), [(enters, "go into cond"), (comes_out, "come out of cond")]
)
def test_attention_that_a_region_cuts_is_named(how, why):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Attention()

        def forward(self, x):
            return how(self.layer, x)

    (declined,) = attnpass.find_sites(Cut(), torch.randn(2, 5, 16)).declined
    assert declined.code == "HOP_UNSUPPORTED" and why in declined.hint


class Scaled(torch.Tensor):
    """A weight of 8 bits and a factor, as quantisation libraries have them: opened by linear."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype)

    def __init__(self, data, scale):
        self.data8, self.scale = data, scale

    def __repr__(self):  # logs print inputs, and fake values cannot be printed
        return "Scaled()"

    def __tensor_flatten__(self):
        return ["data8", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts, meta, size, stride):
        return cls(parts["data8"], parts["scale"])

    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        if f is nn.functional.linear:
            x, w, *bias = args
            return nn.functional.linear(x, w.data8.to(w.scale.dtype) * w.scale, *bias)
        return super().__torch_function__(f, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, f, types, args, kwargs=None):
        if f in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].data8, args[0].scale)
        return f(args[0].data8 * args[0].scale, *args[1:], **(kwargs or {}))


class Opened(Scaled):
    """The same, opened by every operator."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, f, types, args, kwargs=None):
        if f in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(f(args[0].data8), f(args[0].scale))
        given = [x.data8 * x.scale if isinstance(x, Opened) else x for x in args]
        return f(*given, **(kwargs or {}))


class Between(nn.Module):
    """Two calls read one weight; between them something changes what the second one means."""

    def __init__(self, how):
        super().__init__()
        data = torch.randint(-127, 128, (16, 16), dtype=torch.int8)
        self.w = nn.Parameter(Opened(data, torch.full((16, 1), 0.01)), requires_grad=False)
        self.how = how

    def forward(self, x):
        w = self.w.detach()
        if self.how == "written":
            y = nn.functional.linear(x, w)
            x.add_(1.0)
        elif self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                y = nn.functional.linear(x, w)
        else:
            with torch.no_grad():
                y = nn.functional.linear(x, w)
        z = nn.functional.linear(x, w)
        return y, (y.float() @ z.mT * 0.1).softmax(-1) @ z


@pytest.mark.parametrize("how", ["written", "autocast", "no_grad"])
def test_what_stands_between_two_calls_on_a_subclass_stays_there(how):
    torch._dynamo.reset()
    model, x = Between(how), torch.randn(2, 5, 16)
    options = {"form": "softmax", "inner": "eager"}
    run = torch.compile(model, backend="attnpass", options=options)
    given = [x.clone().requires_grad_(how == "no_grad") for _ in range(2)]
    got, want = run(given[0]), model(given[1])
    assert [y.dtype for y in got] == [y.dtype for y in want]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    if how == "no_grad":
        grads = [
            torch.autograd.grad(y[1].sum(), a)[0] for y, a in zip((got, want), given, strict=True)
        ]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-4)


def quantised(weight, cls):
    scale = weight.detach().abs().amax() / 127
    return nn.Parameter(cls((weight.detach() / scale).round().to(torch.int8), scale), False)


@pytest.mark.filterwarnings("ignore:.*does not implement _stable_hash_for_caching")
@pytest.mark.parametrize(
    ("cls", "inner"),
    [(cls, inner) for cls in (Scaled, Opened) for inner in ("eager", "aot_eager")],
)
def test_attention_between_layers_whose_weights_are_tensor_subclasses(cls, inner):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(Attention(), Attention()).eval().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    for layer in model:
        layer.qkv.weight = quantised(layer.qkv.weight, cls)
        layer.o.weight = quantised(layer.o.weight, cls)
    with torch.no_grad():
        report = attnpass.find_sites(model, x)
        assert [s.name for s in report.sites] == ["0", "1"] and report.declined == []
        assert [s.kind for s in report.sites] == ["self", "self"]
        want, found = model(x), {}
        for form in ("softmax", "sigmoid"):
            torch._dynamo.reset()
            options = {"inner": inner, "form": form, "strict": True}
            found[form] = torch.compile(model, backend="attnpass", options=options)(x)
    assert error([found["softmax"]], [want]) < BOUND < error([found["sigmoid"]], [want])
