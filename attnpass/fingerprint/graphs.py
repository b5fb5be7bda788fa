"""The computation of a graph as text, the same in every process, whatever the nodes' names."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, fx

from attnpass.fingerprint.values import content, name
from attnpass.graph import Flex, Opaque


def computation(gm: fx.GraphModule) -> str:
    """A graph's calls, constants, bodies and folded pieces, one line per node; not its weights."""
    names: dict[fx.Node, str] = {}
    rows = []
    for node in gm.graph.nodes:
        arguments = fx.map_arg((node.args, node.kwargs), names.__getitem__)
        names[node] = f"%{len(names)}"
        rows.append(f"{node.op} {_target(gm, node)} {arguments!r}")
    return "\n".join(rows)


def _target(gm: fx.GraphModule, node: fx.Node) -> str:
    """The operator or constant behind a node, without the names that this process gave it."""
    if node.op in ("placeholder", "output"):
        return ""
    held: Any = node.target
    if node.op in ("get_attr", "call_module"):
        held = functools.reduce(getattr, str(node.target).split("."), gm)
    held = held.piece if isinstance(held, (Flex, Opaque)) else getattr(held, "constant", held)
    if isinstance(held, fx.GraphModule):
        return f"({computation(held)})"
    return content(held) if isinstance(held, Tensor) else name(held)
