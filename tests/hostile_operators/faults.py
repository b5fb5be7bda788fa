"""One thing wrong with a valid call: a table of names and functions on its arguments.

A function gives the call with the fault, or None where the call cannot have it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Given = dict[str, Any]
Fault = Callable[[Given, random.Random], Given | None]

OTHERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STRANGE = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)


def _changed(given: Given, **changes: Any) -> Given:
    return {**given, **changes}


MORE = 151
"""No valid call has a size beyond 150: one that is larger by this is neither the old one nor 1."""

Shape = Callable[[list[int]], list[int] | None]


def _shape(name: str, new: Shape) -> Fault:
    """Zeros of another shape in the place of a tensor."""

    def fault(given: Given, pick: random.Random) -> Given | None:
        x = given.get(name)
        shape = None if x is None else new(list(x.shape))
        if x is None or shape is None:
            return None
        return _changed(given, **{name: torch.zeros(shape, dtype=x.dtype)})

    return fault


def _grown(axis: int) -> Shape:
    """One size larger, where there is such an axis."""

    def new(shape: list[int]) -> list[int] | None:
        at = axis + len(shape) if axis < 0 else axis
        grown = [n + MORE if i == at else n for i, n in enumerate(shape)]
        return None if grown == shape else grown

    return new


def _dtype(name: str, among: tuple[torch.dtype, ...]) -> Fault:
    def fault(given: Given, pick: random.Random) -> Given | None:
        x = given.get(name)
        choice = pick.choice([y for y in among if x is None or y != x.dtype])
        return None if x is None else _changed(given, **{name: x.to(choice)})

    return fault


def _all_strange(given: Given, pick: random.Random) -> Given:
    dtype = pick.choice(STRANGE)
    names = [n for n in ("grad", "q", "k", "v") if n in given]
    return _changed(given, **{n: given[n].to(dtype) for n in names})


def _elsewhere(given: Given, pick: random.Random) -> Given:
    tensors = [n for n, x in given.items() if isinstance(x, Tensor)]
    name = pick.choice(tensors)
    return _changed(given, **{name: given[name].to("meta")})


def _sparse(given: Given, pick: random.Random) -> Given | None:
    tensors = [n for n, x in given.items() if isinstance(x, Tensor) and not x.is_neg()]
    name = pick.choice(tensors)
    return _changed(given, **{name: given[name].detach().clone().to_sparse()})


def _freed(given: Given, pick: random.Random) -> Given | None:
    tensors = [n for n, x in given.items() if isinstance(x, Tensor) and x.numel() > 0]
    if not tensors:
        return None
    name = pick.choice(tensors)
    x = given[name].clone()
    x.untyped_storage().resize_(0)
    return _changed(given, **{name: x})


def _heads(given: Given, pick: random.Random) -> Given | None:
    """Key heads that do not divide the query heads: too many of them, a few, or none."""
    h, k, v = given["q"].shape[1], given["k"], given["v"]
    wrong = [n for n in range(h + 4) if (h % n if n else h)]
    if not wrong:
        return None
    n = pick.choice(wrong)
    shapes = {"k": k, "v": v}
    return _changed(
        given, **{m: x.new_zeros((x.shape[0], n, *x.shape[2:])) for m, x in shapes.items()}
    )


def _set(name: str, *values: Any) -> Fault:
    def fault(given: Given, pick: random.Random) -> Given | None:
        return _changed(given, **{name: pick.choice(values)}) if name in given else None

    return fault


def _causal_lengths(given: Given, pick: random.Random) -> Given:
    longer = {}
    for name in ("k", "v"):
        b, h, s, d = given[name].shape
        longer[name] = given[name].new_zeros((b, h, s + MORE, d))
    return _changed(given, keep=None, causal=True, **longer)


def _shrunk(shape: list[int]) -> list[int]:
    return [shape[0] - 1 if shape[0] else 1]


def _flat(shape: list[int]) -> list[int]:
    return shape[1:]


def _deep(shape: list[int]) -> list[int]:
    return [1] * (5 - len(shape)) + shape


COMMON: dict[str, Fault] = {
    **{f"{n} with three axes": _shape(n, _flat) for n in ("q", "k", "v", "grad")},
    **{f"{n} with five axes": _shape(n, _deep) for n in ("q", "k", "v", "grad", "keep", "gain")},
    **{f"{n} of another float": _dtype(n, OTHERS) for n in ("k", "v", "grad")},
    **{f"{n} of a strange dtype": _dtype(n, STRANGE) for n in ("q", "k", "v", "grad", "gain")},
    **{f"{n} of another batch": _shape(n, _grown(0)) for n in ("q", "k", "v", "grad")},
    **{f"{n} of another length": _shape(n, _grown(2)) for n in ("k", "v", "grad")},
    **{f"{n} of other heads": _shape(n, _grown(1)) for n in ("v", "grad")},
    **{f"{n} of another head dim": _shape(n, _grown(3)) for n in ("q", "k", "grad")},
    "all of a strange dtype": _all_strange,
    "a tensor on another device": _elsewhere,
    "a sparse tensor": _sparse,
    "a tensor without memory": _freed,
    "keep of another dtype": _dtype("keep", (*OTHERS, torch.int64, torch.uint8)),
    **{f"keep larger along {i}": _shape("keep", _grown(i)) for i in (-1, -2)},
    **{f"gain larger along {i}": _shape("gain", _grown(i)) for i in (-1, -2)},
    "a tile of zeros": _set("tile", [0, 0, 0, 0, 0, 0, 0], [16, 0]),
    "a negative tile": _set("tile", [-5, 32, 1, 1, 1, 0, 0], [16, -(2**62)]),
    "a huge tile": _set("tile", [2**40, 2**40], [16, 2**63 - 1]),
    "a tile with a switch of 2": _set("tile", [16, 16, 1, 1, 1, 2, 0]),
    "a tile too long": _set("tile", [16, 16, 1, 1, 1, 0, 0, 0]),
}

POINTWISE: dict[str, Fault] = {
    **COMMON,
    "key heads that do not divide": _heads,
    "a tile of the backward of zeros": _set("grad_tile", [0]),
    **{f"{n} of a strange dtype": _dtype(n, STRANGE) for n in ("bias", "tau", "offset", "slopes")},
    **{f"bias larger along {i}": _shape("bias", _grown(i)) for i in (-1, -2)},
    **{f"offset larger along {i}": _shape("offset", _grown(i)) for i in (-1, -2)},
    **{f"{n} too long": _shape(n, _grown(0)) for n in ("tau", "slopes", "lengths")},
    **{f"{n} too short": _shape(n, _shrunk) for n in ("tau", "slopes")},
    **{f"{n} with two axes": _shape(n, lambda s: [1, *s]) for n in ("tau", "lengths")},
    **{f"{n} of no axis": _shape(n, lambda s: []) for n in ("slopes", "lengths")},
    "lengths of another dtype": _dtype("lengths", (*OTHERS, torch.bool)),
    "a negative window": _set("window", -1, -(2**62)),
    "an impossible scale": _set("scale", math.nan, math.inf, -1e300),
    "an unknown h": _set("h", "nope", "", "Sigmoid"),
}

HYDRA: dict[str, Fault] = {
    **COMMON,
    "fewer key heads": _heads,
    "v of another value dim": _shape("v", _grown(3)),
    "causal with more keys": _causal_lengths,
    "keep with one axis": _shape("keep", lambda s: s[-1:]),
    "gain with one axis": _shape("gain", lambda s: s[-1:]),
    "an impossible eps": _set("eps", 0.0, -1.0, math.nan, math.inf, 1e-300),
}


def spoiled(
    operator: str, given: Given, pick: random.Random, fault: str | None = None
) -> tuple[str, Given] | None:
    """The name of a fault, or of the given one, and the arguments with it; None without one."""
    table = HYDRA if operator.startswith("hydra") else POINTWISE
    names = [n for n in table if fault is None or n == fault]
    for name in pick.sample(names, len(names)):
        changed = table[name](given, pick)
        if changed is not None:
            return name, changed
    return None
