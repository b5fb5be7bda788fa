"""Which nodes share storage, and which operators write to it.

Soundness: ``written`` holds every node whose value an operator may change after it was computed.
Conditions:

1. An operator without a schema may return a view of any operand.
2. Where storage is hidden (a batched tensor inside vmap), the schema decides alone.
3. A piece that is carried as one node (``Opaque``) and contains a write counts as a write to
   every operand of this node.

Not covered: tensors that alias before the graph begins, as two of its inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from attnpass.torch_internals import schema, side_effects, storage_id

PURE = frozenset({"aten", "prims", "attnpass"})
"""Namespaces whose operators have no effect but those that their schemas or this file name."""

_STATISTICS = frozenset({"batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm"})
"""Operators that write running statistics while training, which their schemas do not say."""


def is_impure(node: fx.Node) -> bool:
    """Whether a node without users must stay: writes, checks, effects, region markers, ends.

    An operator of another library may have an effect that its schema does not name: it stays.
    """
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return False
    found = schema(node)
    if found is None:
        module, name = (getattr(node.target, x, "") for x in ("__module__", "__name__"))
        of_sizes = module == "torch" and name.startswith("sym_")
        return not of_sizes and module not in ("_operator", "math", "builtins")
    space, name = found.name.split("::")
    if found.is_mutable or not found.returns or node.target in side_effects():
        return True
    return space not in PURE or (name in _STATISTICS and _trains(node))


def _trains(node: fx.Node) -> bool:
    given = _named(node)
    return given.get("training", given.get("use_input_stats")) is not False


def _named(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by the names in its schema, with what these are by default."""
    found = schema(node)
    assert found is not None
    given = {x.name: x.default_value for x in found.arguments if x.has_default_value()}
    names = [x.name for x in found.arguments]
    return given | dict(zip(names, node.args, strict=False)) | node.kwargs


def draws(node: fx.Node) -> bool:
    """Whether a node may draw random numbers, which moves every later draw."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = _named(node)
    return given.get("train") is not False and given.get("dropout_p", 1.0) != 0.0


def writes(node: fx.Node) -> bool:
    """Whether the node's operator writes to its first argument."""
    found = schema(node)
    if found is None or not found.is_mutable or not found.arguments:
        return False
    alias = found.arguments[0].alias_info
    return alias is not None and bool(alias.is_write)


def aliases(node: fx.Node) -> bool:
    """Whether the node's operator may return a view of an argument."""
    found = schema(node)
    return found is None or any(r.alias_info is not None for r in found.returns)


def shares(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes hold tensors of one storage; where that is hidden, whether they may."""
    try:
        return bool(_storages(a) & _storages(b))
    except NotImplementedError:  # a batched tensor inside vmap
        return aliases(a)


def _storages(node: fx.Node) -> set[int]:
    value = node.meta.get("val")
    tensors = value if isinstance(value, (list, tuple)) else [value]
    return {storage_id(x) for x in tensors if isinstance(x, Tensor)}


def views_of(base: fx.Node) -> list[fx.Node]:
    """Every node that may share the storage of ``base`` by viewing it, directly or not."""
    found: dict[fx.Node, None] = {}
    stack = [base]
    while stack:
        for user in stack.pop().users:
            if user.op == "call_function" and aliases(user) and user not in found:
                found[user] = None
                stack.append(user)
    return list(found)


def written(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Nodes whose storage operators write to, with all that may share it, and these operators."""
    found: dict[fx.Node, list[fx.Node]] = {}

    def note(nodes: list[fx.Node], by: fx.Node) -> None:
        for x in nodes:
            found.setdefault(x, []).append(by)

    for node in graph.nodes:
        targets: list[Any] = []
        if getattr(node.target, "mutates", False):
            targets = node.all_input_nodes
        elif node.op == "call_function" and writes(node):
            given: Any = node.args[0]
            targets = list(given) if isinstance(given, (list, tuple)) else [given]
        for root in targets:
            while isinstance(root, fx.Node) and root.op == "call_function" and aliases(root):
                if getattr(root.target, "mutates", None) is not None:
                    for given in root.all_input_nodes:
                        note([given, *views_of(given)], node)
                if not root.args or not isinstance(root.args[0], fx.Node):
                    break
                root = root.args[0]
            if isinstance(root, fx.Node):
                note([root, *views_of(root)], node)
    return found
