"""Plan files that no save wrote: each a change of the JSON or of the tensors of a good one."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_tasks import tiny
from tuning import TINY

from attnpass import Plan
from attnpass.plan import Delta
from attnpass.plan.tensors import digest_tensors
from hostile.case import Case

Data = dict[str, Any]
Tensors = dict[str, torch.Tensor]

HUGE = 10**400
A, B, C = (f"blocks.{i}.attn" for i in range(3))
WEIGHT = f"{B}.qkv.weight"


@functools.cache
def good() -> tuple[Data, Tensors]:
    """A plan of three forms with a delta, as it is saved."""
    task = tiny()
    forms = {A: ("sigmoid", {}), B: ("relu", {}), C: ("skipat", {"r": 0.5, "kernel": 3})}
    plan = Plan.create(task.model, *task.example, form="hydra")
    for site, (form, options) in forms.items():
        other = Plan.create(task.model, *task.example, form=form, form_options=options, sites=site)
        plan.sites[site], plan.values[site] = other.sites[site], other.values[site]
    plan.deltas[B] = {WEIGHT: Delta.of({"full": torch.zeros(48, 16)})}
    tensors = plan.tensors()
    return {
        **json.loads(json.dumps(plan.as_dict())),
        "parameters": "plan.safetensors",
        "digest": digest_tensors(tensors),
    }, tensors


def write(folder: Path, data: Any, tensors: Tensors | None = None, sealed: bool = True) -> None:
    """The two files of a plan; ``sealed``: with the right digest."""
    if tensors is not None:
        save_file(tensors, folder / "plan.safetensors")
        if sealed and isinstance(data, dict):
            data["digest"] = digest_tensors(tensors)
    (folder / "plan.json").write_text(json.dumps(data))


def changed(change: Callable[[Data, Tensors], object], sealed: bool = True) -> Any:
    """Files of the good plan after a change of both its parts."""

    def make(folder: Path) -> None:
        data, tensors = copy.deepcopy(good())
        change(data, tensors)
        write(folder, data, tensors, sealed)

    return make


def at(data: Data, *keys: str, value: Any) -> None:
    """Set, or with ``...`` delete, what is at a path of keys."""
    *parents, last = keys
    for key in parents:
        data = data[key]
    if value is ...:
        data.pop(last, None)
    else:
        data[last] = value


def renamed(data: Data, tensors: Tensors, name: str) -> None:
    """The site A by another name."""
    data["sites"] = {name if k == A else k: v for k, v in data["sites"].items()}
    if "\ud800" not in name:
        for key in [k for k in tensors if k.startswith(f"{A}|")]:
            tensors[key.replace(A, name, 1)] = tensors.pop(key)


OPTIONS: list[tuple[str, str, list[Any]]] = [
    (C, "r", [1e9, 10000, -1, HUGE, -HUGE, "2", None, True, [1], {}, 8.5, 1e-320, 1e308]),
    (C, "kernel", [10_000_001, 33, 0, -1, 2, 3.0, "3", None, HUGE, True, [3]]),
    (B, "L", [HUGE, 0, -1, 1e-300, 1e300, "none", "", [], {}, True]),
    (B, "alpha", [HUGE, 1e308, -9, "1", None, [], True]),
    (B, "h", ["sigmoid", "exec", "", 3, None, ["relu"]]),
    (A, "approximate", ["fast", 1, None, []]),
    (A, "typo", [1, None]),
]
NAMES = ["[/]", "[bold]", "\x1b[2J", "\x1b]0;x\x07", "a\nb", "a\rb", "\ud800", "\u202e", "\x00"]
NAMES += ["a|b", "", " ", "x" * 10_000, "é注", ":smile:", "%s", "{0}", "$\\frac", "../../x"]
JUNK = [None, 0, -1, 1.5, True, "x", [], [1], {}, {"a": 1}, "x" * 10_000, HUGE]
TOP = ["version", "sites", "tiles", "measured", "made_by", "parameters", "digest"]
VALUES = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e7]
DTYPES = [torch.int32, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
KEYS = ["", "a", "|", "||", f"{A}", f"{A}|", f"|{A}", "other|b", f"{A}|b|c|d", "é|é", "|" * 1000]
TEXTS = {
    "empty": b"",
    "nothing": b"null",
    "a list": b"[]",
    "half": b'{"version": 1, "sites": {',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested in measured": b'{"version":1,"sites":{},"measured":' + b"[" * 100_000 + b"]" * 100_000,
    "a key twice": b'{"version":1,"sites":{},"sites":{}}',
    "NaN": b'{"version":1,"sites":{},"measured":{"a":NaN}}',
    "Infinity": b'{"version":1,"sites":{},"measured":{"a":-Infinity}}',
    "1e999": b'{"version":1,"sites":{},"measured":{"a":1e999}}',
    "a long int": b'{"version":1,"sites":{},"measured":{"a":' + b"9" * 5000 + b"}}",
    "not UTF-8": b'{"version":1,"sites":{"\xff\xfe":{}}}',
    "UTF-16": '{"version":1}'.encode("utf-16"),
    "a byte of zero": b'{"version":1\x00}',
    "binary": bytes(range(256)) * 100,
    "a pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
}
RAW = {
    "empty": b"",
    "short": b"\x01",
    "a long header": (2**62).to_bytes(8, "little") + b"{}",
    "half": (100).to_bytes(8, "little") + b'{"a":',
    "no JSON": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "a pickle": b"\x80\x04\x95",
    "past the end": (73).to_bytes(8, "little")
    + b'{"a|b":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'[:73],
}


def cases() -> Iterator[Case]:
    """All cases of plan files; each is shown, some are verified and compiled."""

    def show(name: str, make: Any, codes: tuple[int, ...] = (1,), told: str = "") -> Case:
        return Case(f"plan: {name}", make, ("show", "{}/plan.json"), codes, told)

    yield show("good", changed(lambda d, t: None), (0,))
    for site, option, values in OPTIONS:
        for value in values:
            small = (0, 1) if (option, value) in (("r", 1e-320),) else (1,)
            change = functools.partial(_option, site, option, value)
            yield show(f"option {option}={str(value)[:20]!r}", changed(change), small)
    for key in TOP:
        for value in JUNK:
            fine = (0, 1) if value in ({}, {"a": 1}) or (key, value) == ("version", True) else (1,)
            change = functools.partial(_top, key, value)
            yield show(f"{key}={str(value)[:12]!r}", changed(change, key != "digest"), fine)
    for name in NAMES:
        yield show(f"site named {name[:12]!r}", changed(functools.partial(_named, name)), (0, 1))
    for value in VALUES:
        for key in (f"{A}|b", f"{B}|{WEIGHT}|full"):
            change = functools.partial(_value, key, value)
            yield show(
                f"{value} in {key[-4:]}", changed(change), told="expected numbers of at most"
            )
    for dtype in DTYPES:
        yield show(f"dtype {dtype}", changed(functools.partial(_dtype, dtype)), told="float")
    for key in KEYS:
        yield show(f"tensor {key[:12]!r}", changed(functools.partial(_key, key)), (0, 1))
    for name, text in TEXTS.items():
        yield show(name, lambda f, text=text: (f / "plan.json").write_bytes(text))
    for name, text in RAW.items():
        yield show(f"tensors: {name}", functools.partial(_raw, text), told="parameters")
    yield from _removed(show)
    yield from _special(show)
    yield from _verified()


def _option(site: str, option: str, value: Any, data: Data, tensors: Tensors) -> None:
    at(
        data,
        "sites",
        site,
        "options",
        value={**data["sites"][site].get("options", {}), option: value},
    )


def _top(key: str, value: Any, data: Data, tensors: Tensors) -> None:
    data[key] = value


def _named(name: str, data: Data, tensors: Tensors) -> None:
    renamed(data, tensors, name)


def _value(key: str, value: float, data: Data, tensors: Tensors) -> None:
    tensors[key].view(-1)[0] = value


def _dtype(dtype: torch.dtype, data: Data, tensors: Tensors) -> None:
    tensors[f"{A}|b"] = tensors[f"{A}|b"].to(dtype)


def _key(key: str, data: Data, tensors: Tensors) -> None:
    tensors[key] = torch.ones(2)


def _overflowing(data: Data, tensors: Tensors) -> None:
    """Numbers that are large, each alone, and whose products float32 cannot hold."""
    data["sites"][B]["options"] = {"h": "relu2"}
    tensors[f"{B}|{WEIGHT}|full"] = torch.randn(48, 16) * 1e5
    tensors[f"{B}|gain"].fill_(1e6)


def _raw(text: bytes, folder: Path) -> None:
    write(folder, good()[0])
    (folder / "plan.safetensors").write_bytes(text)


def _removed(show: Any) -> Iterator[Case]:
    """Parts of a plan that are gone."""
    for key in ("digest", "parameters", "version", "sites"):
        yield show(f"no {key}", changed(lambda d, t, key=key: d.pop(key), sealed=False))
    both = changed(lambda d, t: (d.pop("digest"), d.pop("parameters")), sealed=False)
    yield show("no parameters and no digest", both, told="expected the parameters of")
    yield show("no tensors", lambda f: write(f, good()[0]), told="expected the plan's parameters")
    other = changed(lambda d, t: t[f"{A}|b"].add_(1), sealed=False)
    yield show("tensors of another save", other, told="was saved with")
    for site in (A, B):
        gone = changed(lambda d, t, s=site: [t.pop(k) for k in list(t) if k.startswith(f"{s}|")])
        yield show(f"no tensors of {site}", gone, told=f"expected the parameters of {site}")


def _special(show: Any) -> Iterator[Case]:
    """What is at the place of a file and is none; very large ones."""
    for name in ("plan.json", "plan.safetensors"):
        for kind in ("pipe", "zero", "random", "folder", "link to itself", "sparse", "null"):
            yield show(f"{name} is a {kind}", functools.partial(_place, name, kind))

    def many(folder: Path) -> None:
        site = {"form": "hydra", "fits": {"kind": "self", "heads": 2}, "weights": ""}
        write(folder, {"version": 1, "sites": {f"blocks.{i}.attn": site for i in range(100_000)}})

    yield show("a hundred thousand sites", many, (0,), "99500 sites more")
    verify = ("verify", "{}/plan.json", TINY)
    yield Case("plan: a hundred thousand sites, verified", many, verify, (1,), "99994 more")


def _place(name: str, kind: str, folder: Path) -> None:
    write(folder, good()[0])
    path = folder / name
    path.unlink(missing_ok=True)
    devices = {"zero": "/dev/zero", "random": "/dev/urandom", "null": "/dev/null"}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to(devices.get(kind, path))


def _verified() -> Iterator[Case]:
    """Plans that load, and do not fit the model."""
    verify = ("verify", "{}/plan.json", TINY)
    full = f"{B}|{WEIGHT}|full"

    def delta(shape: tuple[int, ...], key: str = full) -> Any:
        def change(data: Data, tensors: Tensors) -> None:
            tensors.pop(full)
            tensors[key] = torch.zeros(shape)

        return changed(change)

    misfits: dict[str, tuple[Any, str]] = {
        "a delta of another shape": (delta((47, 16)), "expected the weight"),
        "a delta of no weight": (delta((48, 16), f"{B}|none.weight|full"), "got none"),
        "a delta of another layer": (delta((10, 16), f"{B}|head.weight|full"), ""),
        "a parameter of another shape": (
            changed(lambda d, t: t.update({f"{A}|b": torch.ones(3)})),
            "of shape",
        ),
        "a parameter missing": (changed(lambda d, t: t.pop(f"{A}|b")), "expected all parameters"),
        "other heads": (
            changed(lambda d, t: at(d, "sites", A, "fits", "heads", value=9)),
            "heads",
        ),
        "more in fits": (
            changed(lambda d, t: at(d, "sites", A, "fits", "x", value=[9])),
            "with x",
        ),
        "numbers that overflow": (
            changed(_overflowing),
            "expected finite outputs",
        ),
    }
    for name, (make, told) in misfits.items():
        yield Case(f"plan: verified, {name}", make, verify, (0, 1) if not told else (1,), told)
    for name in NAMES[:4]:
        make = changed(functools.partial(_named, name))
        yield Case(f"plan: verified, site named {name[:9]!r}", make, verify, (1,), "found none")
