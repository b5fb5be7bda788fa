"""Attention that no graph holds, or not in one piece, and the graph breaks that are to blame."""

from __future__ import annotations

import logging
import math
import os
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from attnpass.capture.capture import Capture, buffers_kept
from attnpass.site import Decline
from attnpass.torch_internals import TorchDispatchMode

log = logging.getLogger("attnpass")

_ATTENTION = ("softmax", "_scaled_dot_product", "_native_multi_head", "_transformer_encoder")
"""Parts of the names that attention has among the operators that run."""

_TORCH = os.path.dirname(torch.__file__)

HINT = "it runs outside every graph (a graph break, or a function that is not compiled)"


class _Listener(TorchDispatchMode):
    """Notes where attention operators run: the module and the lines of the stack."""

    supports_higher_order_operators = True

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self.paths = paths
        self.heard: list[tuple[str, list[str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        other = any(part in str(func) for part in ("backward", "log_softmax"))  # a loss
        if any(part in str(func) for part in _ATTENTION) and not other:
            lines = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()[:-1]]
            self.heard.append((self.paths[-1] if self.paths else "root", lines))
        return func(*args, **(kwargs or {}))


@contextmanager
def _inside(names: Mapping[nn.Module, str], paths: list[str]) -> Iterator[None]:
    """Inside, the path of the module that runs is the last of ``paths``."""

    def enter(module: nn.Module, _: Any) -> None:
        paths.append(names.get(module, paths[-1] if paths else "") or "root")

    def leave(*_: Any) -> None:
        paths.pop()

    hooks = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _opened(path: str, known: Collection[str]) -> bool:
    """Whether the attention of a module that runs as one operator is known by its parts."""
    return any(path == "root" or k.startswith(f"{path}.") for k in known)


def uncaptured(
    capture: Capture, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Decline]:
    """A Decline for every line at which attention runs that no graph of ``capture`` holds.

    The model runs once more, without compiler and gradients; buffers and random numbers are kept.
    Where it cannot, what it did until then is told.
    """
    verdicts = [*((s.name.partition("#")[0], s.source) for s in capture.sites)]
    verdicts += [(d.path, d.source) for d in capture.declined]
    known, sources = {path for path, _ in verdicts}, {source for _, source in verdicts}
    paths: list[str] = []
    names = {module: name for name, module in capture.model.named_modules()}
    listener = _Listener(paths)
    quiet = torch.no_grad(), torch.random.fork_rng(devices=[]), buffers_kept(capture.model)
    try:
        with quiet[0], quiet[1], quiet[2], _inside(names, paths), listener:
            capture.model(*args, **kwargs)
    except Exception as error:  # a model that compiles a part of itself may not be listened to
        log.debug("what runs outside of graphs is not known: %s", error)
    found: dict[tuple[str, str], None] = {}
    for path, lines in listener.heard:
        if path not in known and not sources.intersection(lines) and not _opened(path, known):
            own = [x for x in lines if not x.startswith((_TORCH, __file__))]
            found[path, own[-1] if own else ""] = None
    return [Decline("NOT_CAPTURED", path, source, HINT) for path, source in found]


BROKEN = ("CROSS_GRAPH", "NOT_CAPTURED")
"""The codes of attention that a graph break may have cut."""


def with_break(decline: Decline, breaks: Sequence[tuple[str, list[str]]]) -> Decline:
    """A decline that names the graph break nearest to it, where one may have caused it.

    ``breaks``: reasons with the lines of their stacks, as ``torch_internals.graph_breaks``.
    """
    if decline.code not in BROKEN or not breaks:
        return decline
    file, _, line = decline.source.rpartition(":")

    def distance(found: tuple[str, list[str]]) -> float:
        lines = [x.rpartition(":") for x in found[1]]
        near = [abs(int(n) - int(line)) for name, _, n in lines if name == file]
        return min(near, default=math.inf)

    reason, lines = min(breaks, key=distance)
    where = lines[-1] if lines else "an unknown line"
    return replace(decline, hint=f"{decline.hint}; the graph breaks at {where}: {reason}")
