"""The behaviour of a function as text that changes with it.

Comments, line numbers and file names do not count, nor do the sources of other modules.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import CodeType, FunctionType

import torch
from torch import nn

from attnpass.fingerprint.values import content, name

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""Types whose ``repr`` is complete."""


def behaviour(f: object, within: tuple[object, ...] = ()) -> str:
    """Bytecode and constants of a callable, and the names of its own module that it uses.

    Functions, classes and objects count if they are of the callable's module; plain values,
    containers, arrays and tensors count wherever they come from. Both may be globals, defaults,
    closed over, attributes of a callable object or of a method's object, or arguments of a
    ``functools.partial``. The text is the same in every process of one Python version.

    ``within`` are the objects whose text is being made: a callable that refers to one of them
    gives its name alone.
    """
    if any(f is outer for outer in within):
        return name(f)
    within = (*within, f)
    if isinstance(f, functools.partial):
        return f"partial {_value([f.func, f.args, f.keywords], f.func, within)}"
    function = _function(f)
    if function is not None:
        owner = behaviour(f.__self__, within) if hasattr(f, "__self__") else ""
        return f"{_code(function, within)} {owner}"
    return _object(f, within)


def _function(f: object) -> FunctionType | None:
    """The Python function of a function, a method, a static or class method or a property."""
    inner = getattr(f, "__func__", getattr(f, "fget", f))
    return inner if isinstance(inner, FunctionType) else None


def _object(f: object, within: tuple[object, ...]) -> str:
    """The methods of a class, and of an object its attributes and weights too."""
    cls = f if isinstance(f, type) else type(f)
    own = [vars(c) for c in cls.__mro__ if c.__module__ == cls.__module__]
    functions = [_function(x) for attributes in own for x in attributes.values()]
    methods = [_code(function, within) for function in functions if function is not None]
    weights = f.state_dict() if isinstance(f, nn.Module) else {}
    held = [] if f is cls else [getattr(f, "__dict__", {}), weights]
    return f"{name(f)} {methods} {_value(held, f, within)}"


def _code(f: FunctionType, within: tuple[object, ...]) -> str:
    """A function's bytecode with that of its inner functions, and the values that it uses."""
    codes = [f.__code__]
    for code in codes:
        codes += [x for x in code.co_consts if isinstance(x, CodeType)]
    parts = [(c.co_code.hex(), c.co_names, *map(_constant, c.co_consts)) for c in codes]
    names = sorted({n for c in codes for n in c.co_names if n in f.__globals__})
    used: list[object] = [f.__defaults__, f.__kwdefaults__, [f.__globals__[n] for n in names]]
    used += [cell.cell_contents for cell in f.__closure__ or ()]
    return repr([parts, _value(used, f, within)])


def _constant(x: object) -> str:
    """A constant of bytecode; inner code is empty, since it has a row of its own."""
    if isinstance(x, CodeType):
        return ""
    return repr(sorted(map(repr, x)) if isinstance(x, frozenset) else x)


def _value(x: object, user: object, within: tuple[object, ...]) -> str:
    """A value that ``user`` uses, as far as it is the same in every process."""

    def text(item: object) -> str:
        return _value(item, user, (*within, x))

    if isinstance(x, PLAIN) or hasattr(x, "tolist"):
        return content(x)
    if any(x is outer for outer in within):
        return name(x)
    if isinstance(x, Mapping):
        return f"{{{', '.join(sorted(f'{text(k)}: {text(v)}' for k, v in x.items()))}}}"
    if isinstance(x, (set, frozenset)):
        return f"{{{', '.join(sorted(map(text, x)))}}}"
    if isinstance(x, (tuple, list)):
        return f"[{', '.join(map(text, x))}]"
    near = getattr(x, "__module__", "") == getattr(user, "__module__", None)
    return behaviour(x, within) if near or isinstance(x, functools.partial) else name(x)
