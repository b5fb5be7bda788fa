"""One item through a graph of several: proven to be the same graph, or refused."""

import pickle

import pytest
import torch
from models import Block
from plans import BOUND, error
from torch import fx, nn

import attnpass
from attnpass import Plan
from attnpass.capture.single_item import first_items, same_graph, sizes_between
from attnpass.errors import CaptureError


class Headed(nn.Module):
    """Attention, and then what depends on the batch in one way or another."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = Block(), head

    def forward(self, x, *rest):
        return self.head(self.block(x), *rest)


def items(batch, tokens=5):
    return torch.randn(batch, tokens, 24, generator=torch.Generator().manual_seed(batch))


SAME = {
    "first token": lambda y: y[:, 0],
    "turned": lambda y: y.transpose(0, 1).reshape(y.shape[1], y.shape[0] * y.shape[2]),
    "counted": lambda y: y / y.shape[0],
    "spread": lambda y: y.new_zeros(1, 1, y.shape[2]).expand(y.shape[0], 3, -1) + y[:, :3],
}
OTHER = {
    "branch": lambda y: y * 2 if y.shape[0] > 1 else y * 3,
    "squeezed": lambda y: y.squeeze(0) + 1,
    "smaller of two": lambda y: y * (min(y.shape[0], 2) + 1),
    "fails": lambda y: y.view(y.shape[0] // 2, -1)[1:],
}


def converted(head, x):
    model = Headed(head).eval()
    with torch.no_grad():
        return attnpass.convert(model, Plan.create(model, x, form="softmax"), x), model


@pytest.mark.parametrize("name", SAME)
def test_one_item_runs_where_the_graph_is_the_same(name):
    module, model = converted(SAME[name], items(3))
    with torch.no_grad():
        for batch, tokens in ((1, 5), (2, 5), (1, 7)):
            x = items(batch, tokens)
            assert error(module(x), model(x)) <= BOUND


@pytest.mark.parametrize("name", OTHER)
def test_one_item_is_refused_where_the_model_asks_for_the_batch(name):
    module, _ = converted(OTHER[name], items(4))
    with torch.no_grad(), pytest.raises(CaptureError, match="as the graph was captured for"):
        module(items(1))


def test_what_a_call_of_one_item_is_checked_by_is_pickled():
    module, _ = converted(nn.Identity(), items(3))
    again = pickle.loads(pickle.dumps(module._guards))
    assert [sizes.texts for sizes, _ in again.also] == [s.texts for s, _ in module._guards.also]
    assert again.also


def test_first_items_are_those_of_tensors_as_long_as_the_first():
    x, mask = torch.randn(4, 2), torch.ones(3, 3)
    found = first_items([x, 4, mask, x, x[:, 0]])
    assert found[0] is found[3] and torch.equal(found[0], x[:1])
    assert found[1] == 4 and found[2] is mask and found[4].shape == (1,)
    assert first_items([torch.ones(1, 2)]) is first_items([3]) is None


def graph(*steps):
    """A graph of operators on one input."""
    g = fx.Graph()
    node = g.placeholder("x")
    for target, *args in steps:
        node = g.call_function(target, (node, *args))
    g.output((node,))
    return fx.GraphModule({}, g)


def test_graphs_of_other_operators_numbers_or_order_are_told_apart():
    aten = torch.ops.aten
    known = graph((aten.mul.Tensor, 2), (aten.add.Tensor, 1))
    whole = (aten.slice.Tensor, 0, 0, 2**63 - 1)
    assert same_graph(known, graph((aten.mul.Tensor, 2), whole, (aten.add.Tensor, 1)), {})
    for other in (
        graph((aten.add.Tensor, 1), (aten.mul.Tensor, 2)),
        graph((aten.mul.Tensor, 2), (aten.add.Tensor, 2)),
        graph((aten.mul.Tensor, 2.0), (aten.add.Tensor, 1)),
        graph((aten.mul.Tensor, 2), (aten.add.Tensor, True)),
        graph((aten.mul.Tensor, 2)),
        graph((aten.mul.Tensor, 2), (aten.slice.Tensor, 0, 0, 3), (aten.add.Tensor, 1)),
    ):
        assert not same_graph(known, other, {}) and not same_graph(other, known, {})


def test_sizes_between_captures_of_other_arguments_are_none():
    x = torch.ones(2, 3)
    assert sizes_between({0: x}, {0: x}) == {}
    assert sizes_between({0: x}, {1: x}) is sizes_between({0: x}, {0: x[:1]}) is None
