"""A converted module computes what the model computes under the plan, or raises CaptureError."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random

import pytest
import torch
from provers import mutated, numbered
from torch import nn
from torch.nn import functional as F

import attnpass
from attnpass import Plan
from attnpass.capture import conversion_guards
from attnpass.errors import CaptureError

D, H = 8, 2


class Base(nn.Module):
    """Attention whose result a subclass treats by what it reads of the call."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))
        self.table = nn.Parameter(torch.randn(32, D))
        self.register_buffer("count", torch.zeros(()))

    def attend(self, x, **how):
        q, k, v = (f(x).unflatten(-1, (H, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).flatten(2)

    def forward(self, x, mask=None):
        return self.treat(self.attend(x), x, mask)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return -grad


def treatments():
    """Name to what is done with the attention's result ``y`` of ``x``."""
    return {
        "mean over tokens": lambda m, y, x, mask: y.sum(1) / x.shape[1],
        "mean over batch": lambda m, y, x, mask: y.sum(0) / x.shape[0],
        "is_causal from length": lambda m, y, x, mask: m.attend(y, is_causal=x.shape[1] > 1),
        "branch on length": lambda m, y, x, mask: y if x.shape[1] < 6 else y[:, -5:],
        "positions": lambda m, y, x, mask: y + m.table[: x.shape[1]],
        "mask of the length": lambda m, y, x, mask: (
            y * torch.ones(x.shape[1], x.shape[1]).tril().sum(1)[:, None]
        ),
        "fixed sizes": lambda m, y, x, mask: y.reshape(x.shape[0], 5, -1).sum(1),
        "pooling": lambda m, y, x, mask: y[:, : max(1, x.shape[1] // 2)].mean(1),
        "arange over length": lambda m, y, x, mask: (
            y * (torch.arange(x.shape[1]) / x.shape[1])[:, None]
        ),
        "loop over batch": lambda m, y, x, mask: sum(y[i] * (i + 1) for i in range(len(x))),
        "dtype": lambda m, y, x, mask: y * (2 if x.dtype == torch.float64 else 3),
        "autocast inside": autocast_inside,
        "requires_grad": lambda m, y, x, mask: y * 2 if x.requires_grad else y,
        "grad mode": lambda m, y, x, mask: y * 2 if torch.is_grad_enabled() else y,
        "contiguity": lambda m, y, x, mask: y * 2 if x.is_contiguous() else y,
        "mask or none": lambda m, y, x, mask: y if mask is None else y * mask.unsqueeze(-1),
        "width of the mask alone": lambda m, y, x, mask: (
            y if mask is None else y / mask.shape[1] + y.shape[0]
        ),
        "reversed gradient": lambda m, y, x, mask: Reverse.apply(y),
        "no gradient inside": no_gradient_inside,
        "counts": lambda m, y, x, mask: y * m.count.add_(1),
    }


def autocast_inside(m, y, x, mask):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.shape[1] > 4):
        return m.q(y).to(x.dtype)


def no_gradient_inside(m, y, x, mask):
    with torch.no_grad():
        scale = y.mean()
    return y * scale


def model_of(name):
    torch.manual_seed(0)
    cls = type("Model", (Base,), {"treat": staticmethod(lambda *a: None)})
    cls.treat = treatments()[name]
    return cls().double().eval()


def data(batch=2, tokens=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(10 * batch + tokens)
    return torch.randn(batch, tokens, D, generator=generator, dtype=torch.float64).to(dtype)


CALLS = {
    "same": lambda: data(),
    "batch": lambda: data(4),
    "batch 1": lambda: data(1),
    "length": lambda: data(2, 8),
    "length 1": lambda: data(2, 1),
    "odd": lambda: data(3, 7),
    "dtype": lambda: data(dtype=torch.float32),
    "strided": lambda: data(5, 2).transpose(0, 1),
    "expanded": lambda: data(1).expand(2, -1, -1),
    "part": lambda: data(6)[2:5],
    "needs gradients": lambda: data().requires_grad_(),
}


def ran(run, x, weights):
    """The result of a call and its gradients, or the error."""
    try:
        y = run(x)
    except Exception as error:
        return error
    inputs = [*weights, x] if x.requires_grad else weights
    if not y.requires_grad:
        return [y]
    return [y, *torch.autograd.grad(y.sum(), inputs, allow_unused=True)]


def outcome(model, module, x, grad, tolerance=1e-10):
    """``covered`` or ``refused``: never another result, gradient or written buffer."""
    weights = list(model.parameters())
    with torch.set_grad_enabled(grad):
        model.count.zero_()
        got = ran(module, x, weights[:6])
        count = model.count.clone()
        if isinstance(got, CaptureError):
            assert "expected" in str(got) and "got" in str(got) and ";" in str(got)
            return "refused"
        model.count.zero_()
        want = ran(model, x, weights[:6])
    if isinstance(want, Exception):
        assert isinstance(got, Exception)
        return "failed"
    assert not isinstance(got, Exception), got
    assert torch.equal(count, model.count)
    assert [g is None for g in got] == [w is None for w in want]
    for g, w in zip(got, want, strict=True):
        if g is not None:
            torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)
    return "covered"


def converted(model, *args, grad=True, form="softmax", **kwargs):
    plan = Plan.create(model, *args, form=form, **kwargs)
    with torch.set_grad_enabled(grad):
        return attnpass.convert(model, plan, *args, **kwargs)


@pytest.mark.parametrize("name", treatments())
def test_a_call_is_covered_or_refused(name):
    model = model_of(name)
    module = converted(model, data())
    found = {
        (call, grad): outcome(model, module, x(), grad)
        for call, x in CALLS.items()
        for grad in (True, False)
    }
    assert found["same", True] == "covered"
    assert found["dtype", True] == found["strided", True] == "refused"


def test_sizes_that_the_model_takes_alike_are_covered():
    model = model_of("mean over tokens")
    module = converted(model, data())
    for call in ("same", "batch", "length", "odd", "part", "needs gradients"):
        assert outcome(model, module, CALLS[call](), True) == "covered"
    assert outcome(model, module, data(), False) == "covered"


@pytest.mark.parametrize("seed", range(6))
def test_random_calls(seed):
    """Five calls each of a random model with a random example, under a random gradient mode."""
    draw = random.Random(seed)
    model = model_of(draw.choice(list(treatments())))
    module = converted(
        model, data(draw.randint(1, 3), draw.randint(1, 8)), grad=draw.random() < 0.5
    )
    for _ in range(5):
        x = data(draw.randint(1, 4), draw.randint(1, 9), draw.choice([torch.float64] * 3))
        x = x.requires_grad_() if draw.random() < 0.3 else x
        outcome(model, module, x, draw.random() < 0.5)


class Pair(Base):
    """Takes a second tensor and plain values, in structures."""

    def forward(self, x, other=None, times=1):
        y = self.attend(x) * times
        return y if other is None else y + other["y"]


class Mode(Base):
    def forward(self, x):
        y = self.attend(x)
        return y * 2 if self.training else y


def test_the_conditions_are_numbered():
    assert numbered(conversion_guards.__doc__) == list(range(1, 9)) == sorted(BREAKS)


def changed_value(model):
    return lambda module: module(data(), None, 2), (data(), None, 1)


def changed_dtype(model):
    return lambda module: module(data(dtype=torch.float32)), (data(),)


def changed_size(model):
    return lambda module: module(data(2, 9)), (data(),)


def one_tensor(model):
    x = data()
    return lambda module: module(x, {"y": x}), (x, {"y": data().clone()})


def changed_gradients(model):
    return lambda module: module(data().requires_grad_()), (data(),)


def under_autocast(model):
    def run(module):
        with torch.autocast("cpu"):
            return module(data())

    return run, (data(),)


def other_weights(model):
    def run(module):
        module.float()
        try:
            return module(data())
        except RuntimeError as error:
            raise AssertionError("ran") from error
        finally:
            module.double()

    return run, (data(),)


def in_training(model):
    return lambda module: module.train()(data()), (data(),)


G = "capture.conversion_guards"
BREAKS = {
    1: (Pair, changed_value, "elif not _equal(known[0], x):", "elif False:"),
    2: (
        "dtype",
        changed_dtype,
        "if _kind(x) != kind or not _one_type(x, self.types[i]):",
        "if 0:",
    ),
    3: ("branch on length", changed_size, "self._raise_sizes(leaves)", "pass"),
    4: (Pair, one_tensor, "if twins(leaves) != self.twins:", "if False:"),
    5: (
        "requires_grad",
        changed_gradients,
        "self._raise_gradients(leaves)",
        "pass",
    ),
    6: ("dtype", under_autocast, "if not _same_ambient(self.ambient, ambient()):", "if False:"),
    7: ("dtype", other_weights, "if found != self.state:", "if False:"),
    8: (Mode, in_training, "if training != self.training:", "if False:"),
}
"""Number of a condition -> a model, a call that it refuses, and the line that checks it."""


@pytest.mark.parametrize("number", BREAKS)
def test_without_its_condition_a_call_is_not_refused(number):
    made, case, line, removed = BREAKS[number]
    model = model_of(made) if isinstance(made, str) else made().double().eval()
    run, given = case(model)
    module = converted(model, *given)
    with pytest.raises(CaptureError, match=r"(?s)expected .* got .*;"):
        run(module.eval())
    with mutated(G, line, removed), contextlib.suppress(RuntimeError, AssertionError):
        run(module.eval())


def test_frozen_parameters_are_covered_and_a_part_of_them_is_not():
    model = model_of("positions")
    module = converted(model, data())
    model.table.requires_grad_(False)
    with pytest.raises(CaptureError, match="need gradients"):
        module(data())
    model.requires_grad_(False)
    torch.testing.assert_close(module(data()), model(data()))


def test_calls_by_position_by_keyword_and_by_default():
    model = Pair().double().eval()
    module = converted(model, data(), other={"y": data() + 1}, times=2)
    want = model(data(4), {"y": data(4)}, 2)
    torch.testing.assert_close(module(data(4), times=2, other={"y": data(4)}), want)
    for args, kwargs in (
        ((data(), {"y": data()}), {"times": 2}),
        ((data(),), {"times": 2}),
        ((data(),), {"other": {"y": data()}, "times": 2.0}),
        ((data(),), {"other": {"y": data()}, "times": True}),
        ((data(),), {"other": {"y": None}, "times": 2}),
    ):
        with pytest.raises(CaptureError):
            module(*args, **kwargs)


class Hidden:
    def __init__(self, x):
        self.x = x


def keeps(m, y, x, mask):
    m.last = y
    return y


def counts_calls(m, y, x, mask):
    m.calls = getattr(m, "calls", 0) + 1
    return y * m.calls


REFUSED = {
    "keeps a tensor": keeps,
    "counts in Python": counts_calls,
    "writes its argument": lambda m, y, x, mask: y + x.mul_(2),
    "returns a size": lambda m, y, x, mask: (y, x.shape[1]),
    "returns a number of a size": lambda m, y, x, mask: (y, x.numel() / 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_check_could_cover_is_refused_at_conversion(name):
    model = model_of("positions")
    plan = Plan.create(model, data(), form="softmax")
    type(model).treat = REFUSED[name]
    with pytest.raises(CaptureError, match="expected a model that"), torch.no_grad():
        attnpass.convert(model, plan, data())


def test_arguments_that_hide_tensors_or_are_the_models_own_are_refused():
    model = model_of("mask or none")
    plan = Plan.create(model, data(), form="softmax")
    with pytest.raises(CaptureError, match="got a Hidden"):
        attnpass.convert(model, plan, data(), Hidden(data()))
    with pytest.raises(CaptureError, match="the model's parameters"):
        attnpass.convert(model, plan, model.table, None)


# torch's own: copying a tree's structure makes one of its leaves in the old way
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_the_checks_survive_copies_pickles_and_tracing():
    model = model_of("branch on length")
    module = converted(model, data(), form="sigmoid")
    with torch.no_grad():
        want = module(data(3))
        plain = pickle.loads(pickle.dumps(module._guards))
        for other in (copy.deepcopy(module), torch.compile(module, backend="eager")):
            torch.testing.assert_close(other(data(3)), want)
            with pytest.raises(Exception, match="captured for"):
                other(data(3, 9))
        state = [getattr(module, name) for name in module._state]
        plain.check([data(3)], state, False)
        with pytest.raises(CaptureError, match="captured for"):
            plain.check([data(3, 9)], state, False)
        tokens = torch.export.Dim("tokens", min=2, max=5)
        program = torch.export.export(module, (data(3, 4),), dynamic_shapes=(({1: tokens},),))
        torch.testing.assert_close(program.module()(data(3)), want)


def test_state_is_the_models_own_until_it_is_replaced():
    model = model_of("positions")
    module = converted(model, data())
    state = {k: v + 1 for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    torch.testing.assert_close(module(data()), model(data()))
    before = model(data())
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}, assign=True)
    assert not torch.allclose(module(data()), before)
    torch.testing.assert_close(model(data()), before)
