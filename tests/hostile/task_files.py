"""Task modules that end, hang, print, or make what is no task."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from hostile import plan_files
from hostile.case import Case

START = """
import sys, time, os
sys.path.insert(0, {tests!r})
import numpy, torch
from dataclasses import replace
from torch import nn
from tiny_tasks import tiny
from attnpass.tuner.digits import correct
"""
TESTS = str(Path(__file__).parent.parent)

IMPORTS = {
    "sys.exit(0)": "sys.exit(0)",
    "sys.exit of a text": "sys.exit('bye')",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "division by zero": "1 / 0",
    "a syntax error": "def (",
    "a missing module": "import none_of_these",
    "many lines": "raise ValueError('one\\ntwo\\nthree')",
    "control characters": "raise ValueError('\\x1b[2J\\ud800')",
    "endless recursion": "f = lambda: f()\nf()",
    "no message": "raise ValueError",
    "a base exception": "class E(BaseException): pass\nraise E('x')",
    "hangs": "time.sleep(600)",
    "hangs and catches": "while True:\n    try: time.sleep(600)\n    except Exception: pass",
    "no function": "tasks = 3",
    "a number": "task = 3",
    "of arguments": "def task(x): return tiny()",
}
RETURNS = ["None", "3", "tiny", "tiny().model", "[tiny()]", "iter(())", "nn.Linear(1, 1)"]
FIELDS = {
    "model": [
        "None",
        "lambda x: x",
        "nn.Linear",
        "torch.ones(3)",
        "nn.Identity().train",
        "tiny().model.to('meta')",
        "Bad('raise ValueError(1)')",
        "Bad('raise KeyError')",
        "Bad('raise KeyboardInterrupt')",
        "Bad('sys.exit(0)')",
        "Bad('return None')",
        "Bad('return {}')",
        "Bad('return 3')",
        "Bad('return x[0].tolist()')",
        "Bad('return x.new_empty(0)')",
        "Bad('raise ValueError(chr(27) + chr(10))')",
    ],
    "example": [
        "None",
        "()",
        "[]",
        "torch.rand(2, 1, 32, 32)",
        "(None,)",
        "(torch.rand(2, 1, 32, 31),)",
        "(torch.rand(2, 1, 32, 32).double(),)",
        "(torch.randint(9, (2, 1, 32, 32)),)",
        "{'none': torch.rand(2, 1, 32, 32)}",
        "{3: torch.rand(2, 1, 32, 32)}",
        "(torch.rand(2, 1, 32, 32, device='meta'),)",
        "(torch.rand(2, 1, 32, 32),) * 2",
        "('x',)",
    ],
    "calibration": [
        "None",
        "3",
        "[]",
        "iter([])",
        "[3]",
        "[(torch.rand(3),)]",
        "'xyz'",
        "{}",
        "{1}",
    ],
    "validation": [
        "None",
        "3",
        "[]",
        "(x for x in ())",
        "[3]",
        "[()]",
        "[(1, 2)]",
        "[((torch.rand(3),), 1)]",
        "[((torch.rand(2, 1, 32, 32),), None)]",
        "[((torch.rand(2, 1, 32, 32),), torch.zeros(3).long())]",
        "[((torch.rand(0, 1, 32, 32),), torch.zeros(0).long())]",
        "{}",
        "range(3)",
        "torch.rand(3, 2)",
    ],
    "recovery": ["None", "3", "[3]", "[torch.rand(3)]"],
    "score": [
        "None",
        "3",
        "'accuracy'",
        "lambda o: o",
        "lambda o, t: 1 / 0",
        "lambda o, t: sys.exit(0)",
        "lambda o, t: None",
        "lambda o, t: 1.0",
        "lambda o, t: {'a': 1}",
        "lambda o, t: [1.0] * len(t)",
        "lambda o, t: numpy.ones(len(t))",
        "lambda o, t: torch.ones(3)",
        "lambda o, t: torch.ones(len(t), 1)",
        "lambda o, t: torch.ones(())",
        "lambda o, t: torch.ones(0)",
        "lambda o, t: torch.full((len(t),), float('nan'))",
        "lambda o, t: torch.full((len(t),), float('inf'))",
        "lambda o, t: torch.ones(len(t), dtype=torch.complex64)",
        "lambda o, t: torch.ones(len(t), device='meta')",
        "lambda o, t: torch.rand(len(t))",
        "lambda o, t: (torch.ones(len(t)), 3)",
    ],
    "metric": ["None", "3", "['a']"],
    "name": ["None", "3", "b'x'"],
    "outputs": ["None", "'labels'", "3", "''"],
    "pooled": ["None", "1", "'yes'"],
}
BAD = """
class Bad(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = code
    def forward(self, x):
        scope = {}
        exec('def f(x):\\n    import sys\\n    ' + self.code, scope)
        return scope['f'](x)
"""


def module(text: str, folder: Path) -> None:
    """The task module of a text."""
    (folder / "mine.py").write_text(START.format(tests=TESTS) + text)


def cases() -> Iterator[Case]:
    """All cases of task modules; a field that is wrong must be named."""
    path, limit = "{}/mine.py:task", ("--load-timeout", "1")
    for name, text in IMPORTS.items():
        told = "interrupted" if name == "KeyboardInterrupt" else "expected"
        make = functools.partial(module, text)
        yield Case(f"task: import, {name}", make, ("sites", path, *limit), told=told)
        inside = "def task():\n" + "".join(f"    {line}\n" for line in text.splitlines())
        if "def" not in text and "tasks" not in text and "task = 3" not in text:
            make = functools.partial(module, inside)
            yield Case(f"task: factory, {name}", make, ("sites", path, *limit), told=told)
    for value in RETURNS:
        make = functools.partial(module, f"def task(): return {value}")
        yield Case(f"task: returns {value}", make, ("sites", path), told="return an attnpass.Task")
    for field, values in FIELDS.items():
        for value in values:
            text = f"{BAD}\ndef task(): return replace(tiny(), {field}={value})"
            told = "interrupted" if "Keyboard" in value else ""
            # the tiny model takes any size of image, and a check needs no items
            fine = (0, 1) if "31)" in value or "rand(0" in value else (1,)
            make = functools.partial(module, text)
            yield Case(f"task: {field}={value}", make, ("roundtrip", path), fine, told)
    yield from _printing(path)
    for where in (
        "none.py:task",
        ".:task",
        "/:task",
        "none:task",
        ":",
        ":task",
        "os:path",
        "x",
        "",
    ):
        yield Case(f"task: at {where!r}", lambda f: None, ("sites", where), told="expected")
    for kind, folder_name in (
        ("a name that is not UTF-8", "\udcff\udcfe"),
        ("spaces", "a b'\"[x]"),
    ):

        def elsewhere(folder: Path, name: str = folder_name) -> None:
            (folder / name).mkdir()
            module("task = tiny", folder / name)
            plan_files.changed(lambda d, t: None)(folder / name)

        inner = f"{{}}/{folder_name}"
        for command in (
            ("sites", f"{inner}/mine.py:task"),
            ("show", f"{inner}/plan.json"),
            ("verify", f"{inner}/plan.json", f"{inner}/mine.py:task"),
            ("import", f"{inner}/plan.json", "--db", f"{inner}/a.db"),
        ):
            yield Case(f"task: a folder of {kind}, {command[0]}", elsewhere, command, (0, 1))


def _printing(path: str) -> Iterator[Case]:
    """With --json, stdout is one JSON object, whoever prints."""
    for name, text in {
        "print": "print('noise')",
        "os.write": "os.write(1, b'noise\\n')",
        "a process": "os.system('echo noise')",
        "sys.__stdout__": "sys.__stdout__.write('noise\\n')",
    }.items():
        make = functools.partial(module, f"{text}\ndef task():\n    {text}\n    return tiny()")
        told = r"(?s)noise.*\n?\{\"sites\"|\{\"sites\".*"
        yield Case(f"task: {name} with --json", make, ("sites", path, "--json"), (0,), told)
