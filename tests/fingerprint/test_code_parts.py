"""Another body is another digest; comments and places are not, nor are a library's insides."""

from __future__ import annotations

import functools

import pytest
import torch
from fingerprint_made import differ, digest, made

from attnpass.fingerprint import Walk

BASE = """
    import math
    import torch

    LIMIT = 5

    def helper(x):
        return x.argmax(1)

    def score(output, target):
        return ((helper(output) == target) & (target < LIMIT)).double()
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<", "<="),
        ("LIMIT = 5", "LIMIT = 6"),
        ("argmax(1)", "argmax(-1)"),
        ("argmax(1)", "argmin(1)"),
        (".double()", ".float()"),
    ],
)
def test_another_body_is_seen(old, new):
    assert BASE.count(old) >= 1
    assert differ(made(BASE), made(BASE.replace(old, new)))


def test_comments_and_places_are_not():
    moved = BASE.replace("    LIMIT", "    # which labels count\n\n    LIMIT")
    assert digest(made(BASE)) == digest(made(moved))


def test_a_global_that_is_not_named_is_not():
    assert digest(made(BASE)) == digest(made(BASE + "\n    OTHER = 3\n"))
    dynamic = BASE.replace("LIMIT)", "globals()['LIM' + 'IT'])")
    assert differ(made(dynamic), made(dynamic.replace("= 5", "= 6")))


OBJECTS = """
    import torch

    class Base:
        def per_item(self, output, target):
            return output.argmax(1) == target

    class Score(Base):
        def __call__(self, output, target):
            return self.per_item(output, target)

        def method(self, output, target):
            return self(output, target)

        @property
        def value(self):
            return self.per_item

        @staticmethod
        def of(output):
            return Score()(output, 0)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(2, 2)
            torch.nn.init.ones_(self.head.weight)
            torch.nn.init.ones_(self.head.bias)

        def forward(self, output, target):
            return self.head(output)

    def score(output, target):
        return Score()(output, target)

    call, method, module, of = Score(), Score().method, Loss(), Score.of
"""


@pytest.mark.parametrize("name", ["score", "call", "method", "module", "of", "Score"])
def test_methods_and_weights_are_seen(name):
    old, new = ("ones_", "zeros_") if name == "module" else ("argmax", "argmin")
    texts = [digest(made(text, name)) for text in (OBJECTS, OBJECTS)]
    assert texts[0] == texts[1] != digest(made(OBJECTS.replace(old, new), name))


def test_closures_defaults_partials_and_attributes_are_seen():
    def closed(k):
        return lambda output, target: output[:, k]

    def default(k):
        def score(output, target, k=k):
            return k

        return score

    def marked(k):
        def score(output, target):
            return score.k

        score.k = k
        return score

    for make in (closed, default, marked, lambda k: functools.partial(torch.topk, k=k)):
        assert digest(make(1)) == digest(make(1)) != digest(make(2))
    again = functools.wraps(torch.relu)(closed(1))
    assert differ(again, torch.relu), "a wrapper has only the name of what it wraps"


def test_a_library_s_function_and_class_are_their_names():
    walk = Walk()
    found = [walk.digest(x) for x in (torch.topk, torch.nn.functional.relu, torch.nn.Linear, len)]
    assert len(set(found)) == 4 and not walk.opaque


def test_the_functions_behind_a_custom_operator_are_seen():
    def registered(k):
        @torch.library.custom_op("fingerprint_test::scaled", mutates_args=())
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * k

        return scaled

    found = []
    for k in (1, 1, 2):
        held = registered(k)
        found.append(digest(torch.ops.fingerprint_test.scaled.default))
        assert digest(torch.ops.fingerprint_test.scaled) and held is not None
    assert found[0] == found[1] != found[2]
