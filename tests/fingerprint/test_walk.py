"""Digests of objects: the same in every process, however they are linked; nothing is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import house
from fingerprint_made import differ, digest, made

from attnpass.fingerprint import Walk


class Plain:
    def __init__(self, **held):
        vars(self).update(held)


def test_types_and_places_count():
    assert differ(1, 1.0, True, "1", b"1", None, [1], (1,), {1}, {1: 1}, [[1]], Plain(a=1))
    assert differ([1, 2], [2, 1], [1, [2]], {"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert digest({3, 1, "a"}) == digest({"a", 1, 3}) != digest({"a", 1})


def test_an_object_that_is_met_twice_counts_as_two_equal_ones():
    one = [1, 2]
    assert digest([one, one]) == digest([[1, 2], [1, 2]]) != digest([one, [1, 3]])


def circle(k):
    found = Plain(k=k)
    found.me = [found]
    return found


def test_circles_end_and_their_contents_count():
    assert digest(circle(1)) == digest(circle(1)) != digest(circle(2))
    chain, other = None, None
    for i in range(5000):  # deeper than Python's stack
        chain, other = [chain, i], [other, i or 1]
    assert digest(chain) != digest(other)


def test_an_object_without_content_is_this_process_s_alone():
    walk = Walk()
    rows = [(x for x in range(3)) for _ in range(2)]
    found = [walk.digest(Plain(rows=x)) for x in rows]
    assert found[0] != found[1] and walk.opaque == {"builtins.generator"}
    code = "from test_walk import *; print(digest(x for x in range(3)))"
    assert len(set(apart(code))) == 2


class Refuses:
    def __getattribute__(self, name):
        raise RuntimeError("working outside of a request")


def test_an_object_that_raises_shows_no_content():
    walk = Walk()
    walk.digest([Refuses()])
    assert walk.opaque == {f"{__name__}.Refuses"}


def test_the_modules_of_functions_and_classes_are_named():
    walk = Walk()
    walk.digest([Plain(f=made), os.path.join])
    assert {Plain.__module__, made.__module__, "posixpath"} <= walk.modules


SETS = """
    import re, torch, enum
    K = {"a", "b", "c", "d"}
    class E(enum.Enum):
        A = 1
        B = 2
    class D:
        names: frozenset = frozenset({"x", "y", "z"})
    class Score(torch.nn.Module):
        def forward(self, output, target):
            return [x for x in output if x in {"one", "two", "three", "four"} or x in K]
    held = [Score(), re.compile("a"), E.A, D(), torch.Generator().manual_seed(1), Score.forward]
    def score(output, target):
        return held
"""


def apart(code: str) -> list[str]:
    """What two processes print, whose sets have other orders."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (house.ROOT, house.ROOT / "tests", here)))
    return [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=here,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": paths, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]


def test_a_digest_is_the_same_in_every_process():
    one, two = apart(
        "from test_walk import *; from tiny_tasks import tiny; import torch\n"
        "disabled = torch.compiler.disable(made(SETS))\n"
        "layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2).to('meta'))\n"
        "print(digest([made(SETS), disabled, layer]))\n"
        "print(sorted(tiny().contents().digests.items()))"
    )
    assert one == two and len(one) > 100
