"""Digests of values: all of a tensor or an array counts, and where a value stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnpass.fingerprint import digest, digest_weights
from attnpass.fingerprint.values import content, name

X = torch.arange(6.0)


@pytest.mark.parametrize(
    "other",
    [X + 1, X.double(), X.view(2, 3), X[:5], torch.cat([X[:5], -X[5:]])],
    ids=["values", "dtype", "shape", "length", "last"],
)
def test_every_property_of_a_tensor_counts(other):
    assert digest_weights([X]) != digest_weights([other])
    assert content(X) != content(other) and digest([X]) != digest([other])


def test_layout_gradients_and_the_kind_of_tensor_do_not():
    turned = X.view(2, 3).t().contiguous().t()
    assert digest_weights([turned]) == digest_weights([X.view(2, 3)])
    assert digest_weights([torch.nn.Parameter(X)]) == digest_weights([X])
    assert digest_weights([torch.ones(2, dtype=torch.bfloat16)]) != digest_weights([torch.ones(2)])
    assert len(digest_weights([])) == 16 and digest_weights([torch.zeros(0)]) != digest_weights([])


def test_the_order_of_weights_counts():
    assert digest_weights([X, X + 1]) != digest_weights([X + 1, X])


def test_a_storage_that_was_read_can_still_be_freed():
    """Sharding frees gathered weights by resizing their storage."""
    weight = torch.ones(3)
    digest_weights([weight])
    assert weight.untyped_storage().resizable()
    weight.untyped_storage().resize_(0)


def test_all_of_a_large_array_counts():
    one, two = np.zeros(5000), np.zeros(5000)
    two[2500] = 1
    assert repr(one) == repr(two)
    assert content(one) != content(two)
    assert content(np.zeros(2)) != content(np.zeros(2, dtype=np.float32))


def test_leaves_of_a_tree_count():
    trees = [({"x": X}, 1), ({"x": X}, 2), ({"x": X + 1}, 1), ({"x": X}, "1")]
    assert len({digest(tree) for tree in trees}) == 4
    assert digest(({"x": X}, 1)) == digest(({"x": X.clone()}, 1))
    assert len(digest([])) == 16


def test_names():
    class Inner:
        pass

    assert name(torch.ops.aten.add.Tensor) == "aten.add.Tensor"
    assert name("as it is") == "as it is"
    assert name(Inner) == name(Inner()) and name(Inner).endswith("Inner")
    assert name(len) == "len"
