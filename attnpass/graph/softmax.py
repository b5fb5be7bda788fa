"""Softmax written by hand becomes one softmax node, so that there is one spelling to match."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from attnpass.graph.aliasing import written
from attnpass.graph.nodes import numbers, op_name, operand

aten = torch.ops.aten


def fold_softmax(graph: fx.Graph) -> None:
    """Replace ``exp(x) / sum(exp(x))``, ``exp(log_softmax(x))``, ``exp(x - logsumexp(x))``."""
    found_at = {node: found for node in graph.nodes if (found := _spelled(node)) is not None}
    unsafe = set(written(graph)) if found_at else set()
    for node, found in found_at.items():
        if unsafe & {node, found[0], *node.all_input_nodes}:
            continue
        with graph.inserting_before(node):
            new = graph.call_function(aten.softmax.int, found)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _spelled(node: fx.Node) -> tuple[Any, int] | None:
    """The operand and axis of the softmax that ``node`` computes, else None."""
    name, args = op_name(node), node.args
    if node.kwargs:
        return None
    if name == "div" and op_name(args[0]) == "exp":
        dim = _along(args[1], "sum", args[0])
        return None if dim is None else (operand(operand(node)), dim)
    if name != "exp":
        return None
    inner: Any = args[0]
    if op_name(inner) == "log_softmax" and len(inner.args) == 2 and not inner.kwargs:
        return inner.args[0], int(inner.args[1])
    if op_name(inner) == "sub" and not inner.kwargs:
        dim = _along(inner.args[1], "logsumexp", inner.args[0])
        return None if dim is None else (inner.args[0], dim)
    return None


def _along(node: Any, name: str, reduced: Any) -> int | None:
    """The one axis over which ``node`` reduces ``reduced``, kept with size 1; else None."""
    if not isinstance(node, fx.Node) or op_name(node) != name or node.kwargs:
        return None
    source, dims, keepdim = (*node.args, None, None)[:3]
    one = isinstance(dims, (list, tuple)) and len(dims) == 1 and keepdim is True
    return numbers(dims)[0] if source is reduced and one else None
