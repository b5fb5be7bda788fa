"""What an object consists of, one level deep: a label, and the objects that it holds.

``walk.py`` says what is claimed of the digests that are made of these, and numbers the conditions.
Functions, classes and modules are in ``code_parts.py``.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import io
import re
import sys
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CellType, MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from attnpass.fingerprint.origin import is_library
from attnpass.fingerprint.values import digest_weights

PLAIN = (type(None), bool, float, complex, str, bytes, type(...), type(NotImplemented))
"""Types whose ``repr`` is complete."""


OWN = frozenset({"_torchdynamo_wrapper_id", "_original_object_hash"})
"""Attributes of torch and of transformers that hold an address or a ``hash`` of one process."""


@dataclass(frozen=True)
class Parts:
    """A label, and the objects held; ``unordered`` where their order has no meaning."""

    label: str
    children: Iterable[object] = ()
    unordered: bool = False


@dataclass(frozen=True)
class Opaque:
    """An object that shows no content, by the name of its type."""

    name: str


def plain_text(x: object) -> str | None:
    """All of a plain value as text; None for any other object."""
    if type(x) is int:
        return f"int {x:x}"  # the decimal text of a long one is refused
    return f"{type(x).__name__} {x!r}" if type(x) in PLAIN else None


@functools.singledispatch
def parts(x: object) -> Parts | Opaque:
    """The parts of an object: of any type that has no rule of its own, what pickle would save.

    Whatever an object raises when it is looked at, goes through: it shows no content.
    """
    cls, name = type(x), f"{type(x).__module__}.{type(x).__qualname__}"
    if name == "builtins.PyCapsule":  # a function of C++, whose file is a source
        return Parts(name)
    reduce: Callable[[object], Any] | None = copyreg.dispatch_table.get(cls)
    reduced = reduce(x) if reduce is not None else x.__reduce_ex__(4)
    held = getattr(x, "__dict__", None)
    if isinstance(reduced, str):
        return Parts(f"{name} called {reduced}", [held])
    made, arguments, state, items, pairs = (*reduced[:5], *(None,) * 5)[:5]
    more = [list(items) if items else None, [*pairs] if pairs else None]
    # a __getstate__ of the user's own may leave something out
    shown = is_library(cls.__module__) or (held is not None and state is held)
    hidden = None if shown else [held, _slots(x)]
    return Parts(f"object {name.rpartition('.')[2]}", [cls, made, arguments, state, *more, hidden])


def _slots(x: object) -> dict[str, object]:
    """The values of an object that are not in its ``__dict__``."""
    named = [vars(cls).get("__slots__", ()) for cls in type(x).__mro__]
    names = {n for some in named for n in ([some] if isinstance(some, str) else some)}
    return {n: getattr(x, n) for n in sorted(names - {"__dict__"}) if hasattr(x, n)}


@parts.register(dict)
def _dict(x: dict[object, object]) -> Parts | Opaque:
    if type(x) is not dict:
        return _general(x)
    pairs = [pair for pair in x.items() if not (isinstance(pair[0], str) and pair[0] in OWN)]
    return Parts("dict", [part for pair in pairs for part in pair])


@parts.register(list)
@parts.register(tuple)
def _sequence(x: list[object] | tuple[object, ...]) -> Parts | Opaque:
    return Parts(type(x).__name__, x) if type(x) in (list, tuple) else _general(x)


@parts.register(set)
@parts.register(frozenset)
def _set(x: set[object]) -> Parts:
    cls = type(x)
    if cls in (set, frozenset):
        return Parts(cls.__name__, x, unordered=True)
    return Parts("set", [frozenset(x), cls, getattr(x, "__dict__", None)])


@parts.register(bytearray)
@parts.register(memoryview)
def _bytes(x: bytearray | memoryview) -> Parts:
    return Parts(type(x).__name__, [bytes(x)])


@parts.register(MappingProxyType)
def _mapping(x: MappingProxyType[object, object]) -> Parts:
    return Parts("mappingproxy", [dict(x)])


@parts.register(CellType)
def _cell(x: CellType) -> Parts:
    try:
        return Parts("cell", [x.cell_contents])
    except ValueError:
        return Parts("empty cell")


@parts.register(weakref.ref)
def _weak(x: weakref.ref[Any]) -> Parts:
    return Parts("weakref", [x()])


@parts.register(type(threading.Lock()))
@parts.register(type(threading.RLock()))
def _lock(x: object) -> Parts:
    return Parts("lock")  # has no content that a score could depend on


@parts.register(io.IOBase)
def _file(x: io.IOBase) -> Parts | Opaque:
    for name in ("stdin", "stdout", "stderr"):
        if x in (getattr(sys, name), getattr(sys, f"__{name}__")):
            return Parts(name)
    if isinstance(x, (io.BytesIO, io.StringIO)):
        return Parts(type(x).__name__, [x.getvalue(), x.tell()])
    return Opaque(type(x).__name__)


@parts.register(Tensor)
def _tensor(x: Tensor) -> Parts:
    """Every property that its users can see, and what was attached to it."""
    cls, name = type(x), f"{x.dtype} {tuple(x.shape)} {x.device.type} {x.layout}"
    held = {k: v for k, v in vars(x).items() if not k.startswith("_dynamo")}
    if x.is_meta:
        return Parts(f"tensor {name}", [cls, held])
    if hasattr(x, "__tensor_flatten__"):
        names, context = x.__tensor_flatten__()
        inner = [getattr(x, n) for n in names]
        return Parts(f"tensor {name}", [cls, names, inner, context, held])
    if x.is_quantized:
        return Parts(f"tensor {name}", [x.int_repr(), x.dequantize(), held])
    if x.is_nested:
        return Parts("nested tensor", [*x.unbind(), held])
    if x.layout is not torch.strided:
        return Parts(f"tensor {name}", [cls, x.to_dense(), held])
    order = "" if x.is_contiguous() else str(x.stride())  # decides which kernel runs
    values = digest_weights([x.resolve_conj().resolve_neg()])
    return Parts(f"tensor {name} {order} {values}", [cls, held])


@parts.register(np.ndarray)
def _array(x: np.ndarray[Any, Any]) -> Parts:
    label = f"array {x.dtype.descr if x.dtype.fields else x.dtype} {x.shape} {x.strides}"
    held = [type(x), getattr(x, "__dict__", None), getattr(x, "mask", None)]
    if x.dtype.hasobject:
        return Parts(label, [x.tolist(), *held])
    data = np.ascontiguousarray(x).tobytes()
    return Parts(f"{label} {hashlib.sha256(data).hexdigest()}", held)


@parts.register(nn.Module)
def _layer(x: nn.Module) -> Parts:
    """A layer with all that it holds: one with parametrizations refuses to be pickled."""
    return Parts("layer", [type(x), vars(x)])


@parts.register(fx.GraphModule)
def _traced(x: fx.GraphModule) -> Parts | Opaque:
    return _general(x)  # its graph is a chain of nodes that know their process


@parts.register(torch.jit.ScriptFunction)
@parts.register(torch.jit.ScriptModule)
def _script(x: Any) -> Parts:
    """The code, constants and weights of a script, as it would be saved."""
    buffer = io.BytesIO()
    torch.jit.save(x, buffer)
    with zipfile.ZipFile(buffer) as archive:
        # line numbers, and an id made of them
        names = [n for n in archive.namelist() if not n.endswith((".debug_pkl", "ation_id"))]
        # scripting a thing twice in a process numbers its names
        texts = [re.sub(rb"___torch_mangle_\d+\.?", b"", archive.read(n)) for n in names]
    return Parts("script", [*names, *texts])


_general: Callable[[object], Parts | Opaque] = parts.dispatch(object)
