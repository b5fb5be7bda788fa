"""Numbers and tensors that depend on no input: which nodes make them, and their real values."""

import pytest
import torch
from tracing import only, result, shapes, site_of, traced

from attnpass.matching.constants import constant, constant_slice, evaluate
from attnpass.matching.recipe import Recipe

X = torch.zeros(4, 6)


def node_of(function, mode="fake"):
    return result(traced(function, X, mode=mode))


FILLED = {
    "zeros": (lambda x: torch.zeros(3), 0.0),
    "zeros_like": (lambda x: torch.zeros_like(x), 0.0),
    "new_zeros": (lambda x: x.new_zeros(3), 0.0),
    "full": (lambda x: torch.full((3,), -1e9), -1e9),
    "full_like": (lambda x: torch.full_like(x, 2.0), 2.0),
    "new_full": (lambda x: x.new_full((3,), -5.0), -5.0),
    "scalar_tensor": (lambda x: torch.scalar_tensor(7.0), 7.0),
    "tensor": (lambda x: torch.tensor(3.0) * 1, None),
    "cast": (lambda x: torch.full((3,), 2.0).to(torch.float64), 2.0),
    "view": (lambda x: torch.full((4,), 2.0).view(2, 2).expand(3, 2, 2), 2.0),
    "ones": (lambda x: torch.ones(3) * 2, None),
    "input": (lambda x: x * 1, None),
    "range": (lambda x: torch.arange(3), None),
}


@pytest.mark.parametrize("name", FILLED)
def test_a_tensor_filled_with_one_number_is_that_number(name):
    function, value = FILLED[name]
    assert constant(node_of(function)) == value


def test_numbers_and_held_tensors_are_themselves():
    gm = traced(lambda x: x + torch.tensor(3.0), X)
    held = next(n for n in gm.graph.nodes if n.op == "get_attr")
    assert constant(held) == 3.0
    assert constant(2) == 2.0 and constant(None) is None and constant("x") is None


def lower(x):
    i = torch.arange(x.shape[0])
    return i[:, None] >= torch.arange(x.shape[1])


def test_a_mask_made_of_sizes_alone_is_evaluated():
    recipe = Recipe(node_of(lower))
    nodes = constant_slice(recipe)
    assert nodes is not None and nodes[-1] is recipe.base
    assert torch.equal(evaluate(recipe, nodes), lower(X))
    assert torch.equal(evaluate(Recipe(recipe.base, True), nodes), ~lower(X))


def test_a_symbolic_size_has_no_value_here():
    recipe = Recipe(node_of(lower, mode="symbolic"))
    assert evaluate(recipe, constant_slice(recipe)) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x > 0,
        lambda x: lower(x) & (x > 0),
        lambda x: torch.rand(4) > 0.5,
        lambda x: torch.bernoulli(torch.full((4,), 0.5)).bool(),
    ],
    ids=["input", "beside-an-input", "random", "bernoulli"],
)
def test_inputs_and_random_numbers_are_no_constants(function):
    assert constant_slice(Recipe(node_of(function))) is None


def test_what_cannot_be_computed_here_has_no_value():
    gm = traced(lambda x: torch.arange(4).view(2, 2), X)
    view = only(gm, "view")
    assert evaluate(Recipe(view), [view]) is None  # its operand is missing


def test_a_drawn_mask_is_drawn_again():
    """What was drawn while tracing is no property of the model."""
    q, k, v = shapes()

    def run(q, k, v):
        keep = torch.zeros(7).bernoulli(1.0).bool()
        return (q @ k.mT).masked_fill(~keep, -1e9).softmax(-1) @ v

    assert site_of(run, q, k, v).mask <= {"padding", "arbitrary"}
