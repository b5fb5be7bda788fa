"""Every property of a value counts; the kinds of ``tests/changes/objects.py`` are run there."""

from __future__ import annotations

import io
import random
import re
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from fingerprint_made import differ, digest
from torch import nn

from attnpass.fingerprint import Walk

X = torch.arange(6.0)


def hidden(k):
    found = Hidden()
    found.k = k
    return found


class Hidden:
    def __getstate__(self):
        return {}


class HiddenSlots:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k

    def __getstate__(self):
        return None


class Rows(dict):
    pass


def tensor_with(k):
    x = X.clone()
    x.k = k
    return x


def masked(last):
    return np.ma.masked_array([1.0, 2.0], [False, last])


def object_array(k):
    return np.array([[k], None], dtype=object)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: 10**5000 + k,
        lambda k: bytearray([k]),
        lambda k: types.MappingProxyType({"k": k}),
        lambda k: Rows(k=k),
        hidden,
        HiddenSlots,
        lambda k: io.StringIO(str(k)),
        lambda k: re.compile("a", k * 8),
        lambda k: random.Random(k),
        lambda k: np.random.default_rng(k),
        lambda k: torch.Generator().manual_seed(k),
        tensor_with,
        lambda k: [X, X * k],
        lambda k: X.mul(k).to_sparse(),
        lambda k: torch.empty(k, device="meta"),
        lambda k: nn.Parameter(X * k),
        lambda k: np.arange(5000) * k,
        lambda k: masked(k == 1),
        object_array,
        lambda k: nn.CrossEntropyLoss(label_smoothing=0.1 * k),
        lambda k: nn.Linear(k, 1, bias=False).requires_grad_(False),
        lambda k: weakref.ref(ALIVE[k]),
    ],
)
def test_contents_count(make):
    torch.manual_seed(0)
    first = make(1)
    torch.manual_seed(0)
    assert digest(first) == digest(first) != digest(make(2))


class Held:
    def __init__(self, k):
        self.k = k


ALIVE = {k: Held(k) for k in (1, 2)}


def test_equal_contents_are_equal():
    for make in (lambda: Hidden(), lambda: np.random.default_rng(3), lambda: random.Random(3)):
        assert digest(make()) == digest(make())
    assert digest(nn.Parameter(X)) == digest(nn.Parameter(X.clone())) != digest(X)


def test_properties_of_a_tensor_count():
    turned = X.view(2, 3).t().contiguous().t()
    assert differ(X, X + 1, X.double(), X.view(2, 3), X[:5], turned, X.bfloat16(), X.int())
    z = torch.tensor([1 + 2j])
    assert digest(z.conj()) == digest(z.conj().resolve_conj()) != digest(z)


def test_locks_and_standard_streams_have_no_content_and_files_no_known_one(tmp_path):
    import sys

    walk = Walk()
    assert walk.digest(threading.Lock()) == walk.digest(threading.Lock())
    walk.digest(sys.stderr)
    assert not walk.opaque
    (tmp_path / "a").write_text("x")
    with open(tmp_path / "a") as file:
        walk.digest(file)
    assert walk.opaque == {"TextIOWrapper"}


def test_a_script_counts_with_its_constants_and_not_with_its_lines():
    def scripted(k):
        return torch.jit.script(Scaled(k))

    assert digest(scripted(1.0)) == digest(scripted(1.0)) != digest(scripted(2.0))


class Scaled(nn.Module):
    def __init__(self, k: float):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x * self.k
