"""A rewrite leaves inputs, results and effects alone, or the check says which it did not."""

from __future__ import annotations

import pytest
import torch

from attnpass.errors import CheckError
from attnpass.rewrite import check_rewritten
from attnpass.torch_internals import make_fx


def graph(run, *given):
    return make_fx(run, *given)


X = torch.ones(2, 3)


def test_the_same_graph_passes_and_new_inputs_may_follow():
    check_rewritten(graph(lambda x: x + 1, X), graph(lambda x: x * 2, X))
    check_rewritten(graph(lambda x: x + 1, X), graph(lambda x, y: x * y, X, X))


def test_an_input_that_is_gone():
    with pytest.raises(CheckError, match="the inputs of the original come first"):
        check_rewritten(graph(lambda x, y: x + y, X, X), graph(lambda x: x + 1, X))


def test_a_result_that_is_gone_or_of_another_kind():
    before = graph(lambda x: (x, x + 1), X)
    with pytest.raises(CheckError, match="there are as many results"):
        check_rewritten(before, graph(lambda x: x + 1, X))
    for other in (lambda x: (x, (x + 1).double()), lambda x: (x, (x + 1)[:1])):
        with pytest.raises(CheckError, match="a result stays of shape, dtype and device"):
            check_rewritten(before, graph(other, X))


def test_an_effect_that_is_gone_or_moved():
    def written(x):
        x.add_(1.0)
        x.mul_(2.0)
        return x + 1

    def swapped(x):
        x.mul_(2.0)
        x.add_(1.0)
        return x + 1

    before = graph(written, X.clone())
    check_rewritten(before, graph(written, X.clone()))
    for other in (swapped, lambda x: x + 1):
        with pytest.raises(CheckError, match="effects are kept, in order"):
            check_rewritten(before, graph(other, X.clone()))
