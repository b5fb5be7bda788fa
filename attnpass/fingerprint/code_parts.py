"""What functions, classes, modules and operators consist of, one level deep.

A library's function or class is its name; the user's are taken apart (condition 3 of ``walk.py``).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from attnpass.fingerprint.origin import is_library, is_named
from attnpass.fingerprint.parts import Parts, parts
from attnpass.torch_internals import (
    CustomOpDef,
    OpOverload,
    OpOverloadPacket,
    custom_op_functions,
    custom_ops,
)

MADE_AT_RUN_TIME = frozenset(
    {"globals", "vars", "eval", "exec", "modules", "__dict__", "__globals__", "import_module"}
)
"""Names in a function that may lead to any global of its module."""

OF_A_MODULE = MADE_AT_RUN_TIME | {"getattr", "__getattribute__"}
"""Names in a function that may lead to any global of a module that it names."""

HIDDEN = frozenset(
    {
        *("__dict__", "__weakref__", "__module__", "__doc__", "__abstractmethods__", "_abc_impl"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__firstlineno__", "__static_attributes__"),
    }
)
"""Attributes of a class that decide nothing."""

OF_C = (
    BuiltinFunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
"""Types of a class's attributes that are written in C: the class's name stands for them."""


@dataclass(frozen=True)
class Names:
    """A module that a function names, with all names in the function."""

    module: ModuleType
    names: frozenset[str]


@parts.register(CodeType)
def _code(x: CodeType) -> Parts:
    shape = (x.co_argcount, x.co_posonlyargcount, x.co_kwonlyargcount, x.co_flags)
    names = (x.co_names, x.co_varnames, x.co_freevars, x.co_cellvars)
    return Parts(
        f"code {x.co_code.hex()} {x.co_exceptiontable.hex()} {shape} {names}", x.co_consts
    )


@parts.register(FunctionType)
def _function(f: FunctionType) -> Parts:
    """A function; one that a library made inside another has no globals of interest."""
    home = f.__globals__.get("__name__")
    if is_named(f):
        return Parts(f"function {home}.{f.__qualname__}")
    own = [f.__code__, f.__defaults__, f.__kwdefaults__, f.__dict__, *(f.__closure__ or ())]
    if is_library(home):
        return Parts(f"inner function {home}.{f.__qualname__}", own)
    names = _names(f.__code__)
    return Parts("function", [*own, _globals(f, names), *_imported(f, names)])


def _names(code: CodeType) -> frozenset[str]:
    """The names of globals and attributes in a function and in those inside it."""
    inner = [_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    texts = [x for x in code.co_consts if isinstance(x, str) and x.isidentifier()]
    return frozenset(code.co_names).union(texts, *inner)


def _globals(f: FunctionType, names: frozenset[str]) -> dict[str, object]:
    """The globals that a function names; all of its module where it may make names."""
    if names & MADE_AT_RUN_TIME:
        return _public(f.__globals__, names)
    return {n: _named(f.__globals__[n], names) for n in sorted(names) if n in f.__globals__}


def _imported(f: FunctionType, names: frozenset[str]) -> list[Names]:
    """The loaded modules that a function imports when it is called, or may."""
    package = f.__globals__.get("__package__") or ""
    paths = [path for n in sorted(names) for path in (n, f"{package}.{n}")]
    modules = [sys.modules.get(path) for path in paths]
    return [Names(m, names) for m in modules if isinstance(m, ModuleType)]


def _public(namespace: Mapping[str, object], names: frozenset[str]) -> dict[str, object]:
    """All of a module but what Python itself put there."""
    return {k: _named(v, names) for k, v in sorted(namespace.items()) if not k.startswith("__")}


def _named(x: object, names: frozenset[str]) -> object:
    return Names(x, names) if isinstance(x, ModuleType) else x


@parts.register(Names)
def _names_of_module(x: Names) -> Parts:
    name, own = x.module.__name__, vars(x.module)
    if is_library(name):
        return Parts(f"module {name}")
    if x.names & OF_A_MODULE:
        return Parts("module", [_public(own, x.names)])
    return Parts("module", [{n: _named(own[n], x.names) for n in sorted(x.names) if n in own}])


@parts.register(ModuleType)
def _module(x: ModuleType) -> Parts:
    return Parts("module", [Names(x, MADE_AT_RUN_TIME)])


@parts.register(MethodType)
def _method(x: MethodType) -> Parts:
    return Parts("method", [x.__func__, x.__self__])


@parts.register(staticmethod)
@parts.register(classmethod)
def _wrapped(x: Any) -> Parts:
    return Parts(type(x).__name__, [x.__func__])


@parts.register(property)
def _property(x: property) -> Parts:
    return Parts("property", [x.fget, x.fset, x.fdel])


@parts.register(functools.partial)
def _partial(x: functools.partial[Any]) -> Parts:
    return Parts("partial", [type(x), x.func, x.args, x.keywords, vars(x)])


@parts.register(type)
def _class(x: type) -> Parts:
    """A class with its attributes and its bases."""
    name = f"{x.__module__}.{x.__qualname__}"
    if is_named(x):
        return Parts(f"class {name}")
    library = is_library(x.__module__)
    held = {
        k: v
        for k, v in sorted(vars(x).items())
        if k not in HIDDEN and not isinstance(v, OF_C) and type(v).__name__ != "instancemethod"
    }
    return Parts(f"class {name if library else x.__qualname__}", [type(x), *x.__bases__, held])


@parts.register(GetSetDescriptorType)
@parts.register(MemberDescriptorType)
@parts.register(MethodDescriptorType)
@parts.register(WrapperDescriptorType)
def _descriptor(x: Any) -> Parts:
    return Parts(f"descriptor {x.__objclass__.__qualname__}.{x.__name__}")


@parts.register(OpOverload)
@parts.register(OpOverloadPacket)
def _operator(x: Any) -> Parts:
    return Parts(f"operator {x}", [custom_ops().get("::".join(str(x).split(".")[:2]))])


@parts.register(CustomOpDef)
def _custom_op(x: CustomOpDef) -> Parts:
    return Parts("custom operator", custom_op_functions(x))
