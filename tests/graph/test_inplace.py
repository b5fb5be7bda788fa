"""In-place writes become functional, and what cannot stays and is declined."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from attnpass.graph.aliasing import writes
from attnpass.graph.normal_form import tidy


def run(function, *inputs):
    """The tidied graph's result, and whether it still writes in place."""
    gm = tidy(make_fx(function, pre_dispatch=True, tracing_mode="fake")(*inputs))
    return gm(*(x.clone() for x in inputs)), any(writes(n) for n in gm.graph.nodes)


def slices(x):
    out = x.new_empty(4, 6)
    out[:, :2] = x[:, :2]
    out[:, 2:] = x[:, 2:] * 2
    return out.t().contiguous()


def read_before_and_after(x):
    y = x * 2
    row, before = y[1], y.sum()
    y[1:3, ::2] += 1
    row.mul_(3)
    return y, row, before, y[1]


def nested(x):
    y = (x + 1).view(2, 2, 6)
    y.transpose(1, 2)[0, :, 1] = x[0]
    return y.sum(0), y


def twice(x):
    y = torch.zeros_like(x)
    y.copy_(x)
    y.add_(1)
    return y, x


def filled(x):
    y = x.clone()
    y[0].fill_(7.0)
    y.select(1, 2).zero_()
    return y


def unsqueezed(x):
    y = x.exp()
    y.unsqueeze(0).flatten()[3:5].neg_()
    return y


def one_dtype(x):
    m = torch.ones(4, 4, dtype=x.dtype).tril()
    m[0].neg_()
    m += m.clone()
    return m * 0.5


FRESH = [one_dtype, slices, read_before_and_after, nested, twice, filled, unsqueezed]


@pytest.mark.parametrize("function", FRESH, ids=lambda f: f.__name__)
def test_writes_to_fresh_tensors_are_gone(function):
    x = torch.randn(4, 6, dtype=torch.float64)
    got, mutates = run(function, x)
    torch.testing.assert_close(got, function(x.clone()), rtol=0, atol=0)
    assert not mutates


def to_the_input(x):
    x.mul_(2)
    return x + 1


def through_overlap(x):
    y = torch.zeros(1, 6, dtype=x.dtype)
    y.expand(4, 6)[0].add_(x[0])
    return y


def other_dtype(x):
    """A comparison in place keeps its dtype, its functional twin does not."""
    m = torch.ones(4, 4, dtype=x.dtype).tril()
    m.logical_not_()
    m += m.clone()
    return m


def transposed_in_place(x):
    m = torch.arange(36.0).view(6, 6)
    row = m[0]
    m.t_()
    return row * 1, m


def turned_then_flat(x):
    """After the first write nothing may make a flat view of the tensor a copy."""
    m = torch.zeros(4, 6, dtype=x.dtype)
    m.t().copy_(x.t().contiguous())
    m.reshape(-1).add_(torch.arange(24))
    return m


LEFT = [to_the_input, through_overlap, other_dtype, transposed_in_place, turned_then_flat]


@pytest.mark.parametrize("function", LEFT, ids=lambda f: f.__name__)
def test_other_writes_stay(function):
    x = torch.randn(4, 6, dtype=torch.float64)
    got, mutates = run(function, x)
    torch.testing.assert_close(got, function(x.clone()), rtol=0, atol=0)
    assert mutates


def test_a_write_without_gradients_keeps_those_of_the_rest():
    """In place under ``no_grad``: the values change, the derivative of what was there stays."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(6, 18)

        def forward(self, x):
            y = x.sin()
            with torch.no_grad():
                y.mul_(2.0)
            q, k, v = self.qkv(y).chunk(3, -1)
            return (q @ k.mT).softmax(-1) @ v

    torch.manual_seed(0)
    model = Model().double()
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(model(x).square().sum(), x)
    for inner in ("eager", "aot_eager"):
        torch._dynamo.reset()
        options = {"form": "softmax", "inner": inner}
        run = torch.compile(model, backend="attnpass", options=options)
        (got,) = torch.autograd.grad(run(x).square().sum(), x)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_gradients_pass_a_functional_write():
    def function(x):
        y = x * 2
        y[1:] = x[:-1].sin()
        return y.square().sum()

    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    gm = tidy(make_fx(function, pre_dispatch=True, tracing_mode="fake")(x))
    (got,) = torch.autograd.grad(gm(x), x)
    (want,) = torch.autograd.grad(function(x), x)
    torch.testing.assert_close(got, want)
