"""What a function or a graph does, as text that changes with it: a part of cache keys.

Comments, line numbers and file names do not count, nor do the sources of other modules.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.graph import Opaque
from attnpass.torch_internals import OpOverload, pytree

SOURCES = (".py", ".cpp", ".h")
"""Endings of the files that decide what a kernel computes."""

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""Values whose own text says all."""


def content(x: Any) -> str:
    """All of a tensor, an array or a plain value; an array's own text leaves most of it out."""
    if isinstance(x, Tensor):
        return digest_weights([x])
    return f"{getattr(x, 'dtype', '')} {x.tolist()}" if hasattr(x, "tolist") else repr(x)


def computation(gm: fx.GraphModule) -> str:
    """What a graph computes: its calls, constants, bodies and folded pieces; not its weights."""
    names: dict[fx.Node, str] = {}
    rows = []
    for node in gm.graph.nodes:
        given = fx.map_arg((node.args, node.kwargs), names.__getitem__)
        names[node] = f"%{len(names)}"
        rows.append(f"{node.op} {_called(gm, node)} {given!r}")
    return "\n".join(rows)


def _called(gm: fx.GraphModule, node: fx.Node) -> str:
    """What a node stands for, whatever its name in this process."""
    if node.op in ("placeholder", "output"):
        return ""
    held: Any = node.target
    if node.op in ("get_attr", "call_module"):
        held = functools.reduce(getattr, str(node.target).split("."), gm)
    held = held.piece if isinstance(held, Opaque) else getattr(held, "constant", held)
    if isinstance(held, fx.GraphModule):
        return f"({computation(held)})"
    return content(held) if isinstance(held, Tensor) else _name(held)


def _name(x: Any) -> str:
    """Of an operator, a function, a class, or of an object's class."""
    if isinstance(x, (str, OpOverload)):
        return str(x)
    return str(getattr(x, "__qualname__", type(x).__qualname__))


def behaviour(f: Any, within: tuple[Any, ...] = ()) -> str:
    """Bytecode and constants of a callable, and what of its own module it uses.

    Of that module functions, classes and objects count, from anywhere plain values, containers,
    arrays and tensors, be they globals, defaults, closed over, attributes of a callable object or
    of a method's, or arguments of a ``functools.partial``. The same in every process of one
    Python version.
    """
    if any(f is known for known in within):
        return _name(f)
    within = (*within, f)
    if isinstance(f, functools.partial):
        return f"partial {_value([f.func, f.args, f.keywords], f.func, within)}"
    found = getattr(f, "__func__", f)
    if hasattr(found, "__code__"):
        owner = behaviour(f.__self__, within) if hasattr(f, "__self__") else ""
        return f"{_code(found, within)} {owner}"
    cls = f if isinstance(f, type) else type(f)
    kin = [vars(c) for c in cls.__mro__ if c.__module__ == cls.__module__]
    own = [getattr(x, "__func__", getattr(x, "fget", x)) for k in kin for x in k.values()]
    methods = [_code(x, within) for x in own if hasattr(x, "__code__")]
    weights = f.state_dict() if isinstance(f, nn.Module) else {}
    held = [] if f is cls else [getattr(f, "__dict__", {}), weights]
    return f"{_name(f)} {methods} {_value(held, f, within)}"


def _code(f: Any, within: tuple[Any, ...]) -> str:
    codes: list[CodeType] = [f.__code__]
    for code in codes:
        codes += [x for x in code.co_consts if isinstance(x, CodeType)]
    parts = [(c.co_code.hex(), c.co_names, *map(_constant, c.co_consts)) for c in codes]
    names = sorted({n for c in codes for n in c.co_names if n in f.__globals__})
    used = [f.__defaults__, f.__kwdefaults__, [f.__globals__[n] for n in names]]
    used += [cell.cell_contents for cell in f.__closure__ or ()]
    return repr([parts, _value(used, f, within)])


def _constant(x: Any) -> str:
    if isinstance(x, CodeType):
        return ""  # has a row of its own
    return repr(sorted(map(repr, x)) if isinstance(x, frozenset) else x)


def _value(x: Any, user: Any, within: tuple[Any, ...]) -> str:
    """A value that ``user`` uses, as far as it is the same in every process."""

    def text(item: Any) -> str:
        return _value(item, user, (*within, x))

    if isinstance(x, PLAIN) or hasattr(x, "tolist"):
        return content(x)
    if any(x is known for known in within):
        return _name(x)
    if isinstance(x, Mapping):
        return f"{{{', '.join(sorted(f'{text(k)}: {text(v)}' for k, v in x.items()))}}}"
    if isinstance(x, (set, frozenset)):
        return f"{{{', '.join(sorted(map(text, x)))}}}"
    if isinstance(x, (tuple, list)):
        return f"[{', '.join(map(text, x))}]"
    near = getattr(x, "__module__", "") == getattr(user, "__module__", None)
    return behaviour(x, within) if near or isinstance(x, functools.partial) else _name(x)


def digest(tree: Any) -> str:
    """Digest of the tensors (dtype, shape, bytes) and other leaves of a tree, 16 hex digits."""
    h = hashlib.sha256()
    for leaf in pytree.tree_leaves(tree):
        h.update(content(leaf).encode())
    return h.hexdigest()[:16]


def digest_weights(parameters: Iterable[Tensor]) -> str:
    """Digest of parameter values, 16 hex digits."""
    h = hashlib.sha256()
    for parameter in parameters:
        value = parameter.detach().cpu().contiguous()
        h.update(f"{value.dtype}{tuple(value.shape)}".encode())
        h.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


@cache
def kernels_digest() -> str:
    """Digest of the kernel and form sources: a change makes every measurement a miss."""
    return _sources("kernels", "forms")


@cache
def recovery_digest() -> str:
    """Digest of the sources that calibrate and distil."""
    return _sources("recover", "plan/delta.py", "capture/node_values.py", "rewrite")


def _sources(*places: str) -> str:
    """Digest of all Python and C++ sources in folders of this package, or of single files."""
    here, h = Path(__file__).parent, hashlib.sha256()
    files: list[Path] = []
    for place in places:
        at = here / place
        files += [at] if at.is_file() else [x for x in at.rglob("*") if x.suffix in SOURCES]
    for file in sorted(files):
        h.update(file.relative_to(here).as_posix().encode() + file.read_bytes())
    return h.hexdigest()[:16]
