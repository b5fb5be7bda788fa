"""Provers with a condition taken out, and a module for strange programs.

A Soundness section numbers the conditions of a claim. Each has a program that shows why it is
there: with the condition the program is refused, or claimed rightly; without, it is not.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator

import torch
from models import Attention
from torch import nn


class Core(Attention):
    """Attention with a few more parameters for strange programs, behind a convolution."""

    def __init__(self, core):
        super().__init__(core)
        self.patches = nn.Conv1d(24, 24, 3, padding=1)
        self.mix = nn.Linear(6, 6, bias=False)
        self.plane = nn.Parameter(torch.rand(6, 6) + 0.5)
        self.sink = nn.Parameter(torch.zeros(self.H, 1, 1))

    def forward(self, x):
        return super().forward(self.patches(x.transpose(1, 2)).transpose(1, 2))


class Removal(ast.NodeTransformer):
    """Takes out the statements that name a condition."""

    def __init__(self, condition: str) -> None:
        self.condition, self.count = condition, 0

    def names(self, node: ast.AST) -> bool:
        constants = (x.value for x in ast.walk(node) if isinstance(x, ast.Constant))
        return any(value == self.condition for value in constants)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Raise, ast.Return, ast.Expr)) and self.names(node):
            self.count += 1
            return ast.copy_location(ast.Pass(), node)
        return super().generic_visit(node)


def functions(namespace: dict) -> dict[str, object]:
    """The functions and methods that a module defines, by qualified name."""
    own = [x for x in namespace.values() if getattr(x, "__module__", "") == namespace["__name__"]]
    methods = [y for x in own if isinstance(x, type) for y in vars(x).values()]
    plain = [x for x in (*own, *methods) if inspect.isfunction(x)]
    return {x.__qualname__: x for x in plain}


@contextlib.contextmanager
def without(condition: str):
    """Inside, the prover does not check a condition."""
    module = importlib.import_module(f"attnpass.matching.{condition.split()[0]}")
    removal = Removal(condition)
    tree = ast.fix_missing_locations(removal.visit(ast.parse(inspect.getsource(module))))
    assert removal.count > 0, f"no statement names {condition}"
    with running(module, tree):
        yield


@contextlib.contextmanager
def mutated(name: str, old: str, new: str):
    """Inside, one line of a prover is another."""
    module = importlib.import_module(f"attnpass.{name}")
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{name} has no line {old!r}"
    with running(module, source.replace(old, new)):
        yield


@contextlib.contextmanager
def running(module, source) -> Iterator[None]:
    """Inside, the functions of a module, wherever they are imported, run other source."""
    changed = {"__name__": module.__name__}
    exec(compile(source, module.__file__, "exec"), changed)
    before, after = functions(vars(module)), functions(changed)
    kept = {name: f.__code__ for name, f in before.items()}
    try:
        for name, f in before.items():
            f.__code__ = after[name].__code__
        yield
    finally:
        for name, f in before.items():
            f.__code__ = kept[name]


def numbered(text: str) -> list[int]:
    """The numbers of the conditions in a Soundness section."""
    section = text[text.index("Soundness") :]
    return [int(n) for n in re.findall(r"^(\d+)\. ", section, re.M)]
