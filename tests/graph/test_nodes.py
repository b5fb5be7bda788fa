"""What a node says of itself: operator, module path, source line, weights."""

import pytest
import torch
from models import POSITIVES, Attention, mul_after
from torch import nn
from tracing import only, result, traced

import attnpass
from attnpass.graph import (
    attribute,
    is_metadata,
    module_path,
    op_name,
    permuted,
    relative_path,
    source_line,
    switched,
    weight_inputs,
)
from attnpass.graph.nodes import plain_path

X = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("L['self'].blocks[0].attn", "blocks.0.attn"),
        ("L['self']._modules['blocks']._modules['0']", "blocks.0"),
        ("L['self'].__dict__['_modules']['up'].0.__dict__['_modules']['attn'].q", "up.0.attn.q"),
        ("L['self'].my__dict__.0._modules_.1", "my__dict__.0._modules_.1"),
        ("L['fn'].blocks['3'].attn", "blocks.3.attn"),
        ("L['self'].my_modules[0]", "my_modules.0"),
        ("L['self']", ""),
        ("attn", "attn"),
    ],
)
def test_dynamos_paths_are_those_of_named_modules(path, plain):
    assert plain_path(path) == plain


def test_an_operator_is_named_without_overload():
    gm = traced(lambda x: (x.view(6, 4) + 1, x.split(1)[0]), X)
    assert {op_name(n) for n in gm.graph.nodes if n.op == "call_function"} >= {"view", "add"}
    assert all(op_name(n) == "" for n in gm.graph.nodes if n.op != "call_function")
    assert op_name(None) == op_name(3) == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(2, -3, 1),
        lambda x: x.transpose(0, -1),
        lambda x: x.swapaxes(0, 1),
        lambda x: torch.ops.aten.mT(x),
    ],
    ids=["permute", "transpose", "swapaxes", "mT"],
)
def test_a_transpose_says_where_every_axis_comes_from(function):
    gm = traced(function, X)
    order = permuted(result(gm))
    assert [X.shape[i] for i in order] == list(function(X).shape)
    assert sorted(order) == [0, 1, 2]


def test_gradients_switched_between_two_nodes():
    def run(x):
        a = x * 2
        with torch.no_grad():
            b = a.sin()
        return b.cos(), a.exp()

    gm = traced(run, X)
    mul, sin, cos, exp = (only(gm, n) for n in ("mul", "sin", "cos", "exp"))
    assert switched(mul, sin) and switched(sin, cos) and switched(mul, exp)
    assert not switched(cos, exp) and not switched(mul, mul)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.zeros_like(x), True),
        (lambda x: x.new_full((2,), 1.0), True),
        (lambda x: x + 1, False),
        (lambda x: x.view(24), False),
    ],
)
def test_reading_shape_and_dtype_is_no_use_of_the_values(function, expected):
    assert is_metadata(result(traced(function, X))) == expected


def test_a_held_tensor_is_given_and_a_missing_one_is_none():
    gm = traced(lambda x: x + torch.tensor(3.0), X)
    (held,) = (n for n in gm.graph.nodes if n.op == "get_attr")
    assert float(attribute(held)) == 3.0
    held.target = "nowhere.at.all"
    assert attribute(held) is None


def seen(model, *inputs):
    """Dynamo's graph of ``model`` and its inputs."""
    kept = []

    def backend(gm, given):
        kept.append((gm, given))
        return gm.forward

    torch.compile(model, backend=backend)(*inputs)
    return kept[0]


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.soft = nn.Linear(4, 4), nn.Softmax(-1)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x):
        return self.soft(self.lin(x) + self.shift)


def test_module_path_source_line_and_weights_from_dynamo():
    gm, inputs = seen(nn.Sequential(nn.ModuleList([Inner()])[0], nn.ReLU()), X)
    weights = weight_inputs(gm, inputs)
    assert {relative_path(n) for n in weights} >= {"0.lin.weight", "0.lin.bias"}
    assert len(weights) == len(inputs) - 1 == 3  # the buffer is one of them
    softmax = next(n for n in gm.graph.nodes if "softmax" in str(n.target))
    assert module_path(softmax) == "0"  # the module around nn.Softmax
    file, _, line = source_line(softmax).rpartition(":")
    assert int(line) > 0 and file.endswith(".py")


def test_a_node_without_a_stack_is_at_the_root():
    node = result(traced(lambda x: x + 1, X))
    assert (module_path(node), source_line(node), relative_path(node)) == ("root", "", "")


def test_names_survive_modules_that_look_like_containers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.my_modules = nn.ModuleList([Attention(mul_after)])

        def forward(self, x):
            return self.my_modules[0](x)

    (x,) = POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(Model().eval(), x).sites
    assert site.name == "my_modules.0"
