"""Which nodes share storage, which operators write to it, and which must stay in a graph."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from tracing import holders, only

from attnpass.graph.aliasing import aliases, draws, is_impure, shares, views_of, writes, written

X = torch.zeros(4, 6)


def raw(function, *inputs):
    """The traced graph as it is: writes are not made functional."""
    return make_fx(function, pre_dispatch=True, tracing_mode="fake")(*(inputs or (X,)))


def names(nodes):
    return {n.name for n in nodes}


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (lambda x: x.add_(1), "add_", True),
        (lambda x: x.copy_(x.t().reshape(4, 6)), "copy_", True),
        (lambda x: torch.add(x, 1), "add", False),
        (lambda x: x.view(24) * 1, "view", False),
    ],
)
def test_an_operator_in_place_writes(function, name, expected):
    assert writes(only(raw(function), name)) == expected


def test_an_operator_that_writes_elsewhere_does_not_write_its_first_argument():
    gm = raw(lambda x, y: torch.add(x, 1, out=y), X, X.clone())
    node = next(n for n in gm.graph.nodes if "add" in n.name)
    assert not writes(node) and is_impure(node)


def test_views_alias_and_copies_do_not():
    gm = raw(lambda x: (x.view(24), x.t(), x[1], x.clone(), x + 1, x.reshape(24)))
    found = {n.name: aliases(n) for n in gm.graph.nodes if n.op == "call_function"}
    assert {k for k, v in found.items() if not v} == {"clone", "add"}


def test_sharing_is_known_from_the_storage():
    gm = raw(lambda x: (x.view(24), x.reshape(24), x.t().reshape(24)))
    (x,) = holders(gm)
    first, second = (n for n in gm.graph.nodes if n.name.startswith("reshape"))
    assert shares(only(gm, "view"), x) and shares(first, x) and not shares(second, x)


def test_views_of_views_are_found():
    gm = raw(lambda x: (x.view(24).view(4, 6)[0], x + 1))
    (x,) = holders(gm)
    assert names(views_of(x)) == {"view", "view_1", "select"}


def test_a_write_through_a_view_reaches_everything_that_shares():
    def run(x):
        a, b = x * 2, x * 3
        row, flat = a[1], a.view(24)
        row.mul_(2)
        return flat + 1, b

    gm = raw(run)
    found = names(written(gm.graph))
    assert {"mul", "select", "view"} <= found
    assert not found & {"mul_1", "add", "x_1"}


def test_a_graph_without_writes_has_nothing_written():
    assert written(raw(lambda x: x.t() + x.view(6, 4)).graph) == {}


def test_inputs_outputs_and_writes_must_stay():
    def run(x):
        x.view(24)
        x.add_(1)
        return x.sin()

    gm = raw(run)
    stays = {n.name: is_impure(n) for n in gm.graph.nodes}
    assert {k for k, v in stays.items() if not v} == {"view", "sin"}


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: torch.rand_like(x), True),
        (lambda x: F.dropout(x, 0.1, training=True), True),
        (lambda x: F.dropout(x, 0.1, training=False), False),
        (lambda x: F.scaled_dot_product_attention(x, x, x), False),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.0), False),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), True),
        (lambda x: torch.bernoulli(x.sigmoid()), True),
    ],
)
def test_what_draws_random_numbers(function, wanted):
    gm = make_fx(function, pre_dispatch=True, tracing_mode="fake")(torch.randn(2, 3, 4))
    assert any(draws(node) for node in gm.graph.nodes) == wanted


@pytest.mark.parametrize("training", [False, True])
def test_norms_write_statistics_while_they_train(training):
    def batch(x, mean, var):
        return F.batch_norm(x, mean, var, training=training)

    def instance(x, mean, var):
        return F.instance_norm(x, mean, var, use_input_stats=training)

    for function in (batch, instance):
        gm = raw(function, torch.randn(2, 3, 4), torch.zeros(3), torch.ones(3))
        inner = [n for n in gm.graph.nodes if "norm" in str(n.target)]
        assert [is_impure(n) for n in inner] == [training]
