"""The behaviour of a function as text: another body, another text; other comments, the same."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import house
import numpy as np
import pytest
import torch

from attnpass.fingerprint import behaviour

BASE = """
    import math
    import torch

    LIMIT = 5

    def helper(x):
        return x.argmax(1)

    def score(output, target):
        return ((helper(output) == target) & (target < LIMIT)).double()
"""


def made(text: str, name: str = "score"):
    names: dict = {"__name__": "my"}
    exec(compile(textwrap.dedent(text), "my.py", "exec"), names)
    return names[name]


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
    assert behaviour(made(BASE)) != behaviour(made(BASE.replace(old, new)))


def test_comments_and_places_are_not():
    moved = BASE.replace("    LIMIT", "    # which labels count\n\n    LIMIT")
    assert behaviour(made(BASE)) == behaviour(made(moved))


def test_what_is_closed_over_or_bound_is_seen():
    def score(k, weight):
        return lambda output, target: output[:, k] * weight

    found = [behaviour(score(*given)) for given in ((1, 2.0), (1, 2.0), (2, 2.0), (1, 3.0))]
    assert found[0] == found[1] and len(set(found)) == 3
    tensors = [behaviour(score(0, torch.full((2,), x))) for x in (1.0, 2.0)]
    assert tensors[0] != tensors[1]
    parts = [behaviour(functools.partial(torch.topk, k=k)) for k in (1, 1, 5)]
    assert parts[0] == parts[1] != parts[2]
    assert behaviour(torch.topk) == behaviour(torch.topk)

    arrays = [behaviour(score(0, np.arange(2000) * (x + np.arange(2000)))) for x in (0, 1)]
    assert arrays[0] != arrays[1]
    for values in ([{0: 1.0, 1: k} for k in (5, 5, 6)], [{"a", k} for k in ("b", "b", "c")]):
        found = [behaviour(score(0, x)) for x in values]
        assert found[0] == found[1] != found[2]


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

    call, method, module = Score(), Score().method, Loss()
"""


@pytest.mark.parametrize("name", ["score", "call", "method", "module"])
def test_methods_and_weights_are_seen(name):
    old, new = ("ones_", "zeros_") if name == "module" else ("argmax", "argmin")
    texts = [behaviour(made(text, name)) for text in (OBJECTS, OBJECTS)]
    assert texts[0] == texts[1] != behaviour(made(OBJECTS.replace(old, new), name))
    if name == "module":
        other = OBJECTS.replace("self.head(output)", "self.head(-output)")
        assert texts[0] != behaviour(made(other, name))


def test_callable_objects_methods_and_recursion():
    class Score:
        def __init__(self, k=1):
            self.k, self.me = k, [self]

        def __call__(self, output, target):
            return output.topk(self.k)

        def method(self, output, target):
            return self.method(output, target)

    def again(output, target):
        return again(output, target)

    assert behaviour(Score()) == behaviour(Score()) != behaviour(Score().method)
    assert behaviour(Score()) != behaviour(Score(2))
    assert behaviour(Score().method) == behaviour(Score().method) != behaviour(Score(2).method)
    assert behaviour(again) == behaviour(again)


def test_it_is_the_same_in_every_process():
    code = (
        "from test_callables import *; from tiny_tasks import tiny;"
        "print(behaviour(made(SETS)), behaviour(tiny().score))"
    )
    paths = os.pathsep.join(map(str, (house.ROOT, house.ROOT / "tests")))
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": paths, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 100


SETS = """
    def score(output, target):
        return [x for x in output if x in {"one", "two", "three", "four", "five"}]
"""
