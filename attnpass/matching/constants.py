"""Values of a graph that depend on no input: numbers, filled tensors, whole masks.

A mask that no input reaches is computed for real, on the CPU, to see which pattern it has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import attribute, op_name, operators
from attnpass.matching.recipe import Again, Recipe, Tensors, replay
from attnpass.torch_internals import expression, unset_fake_temporarily

EVALUATED = 4096
"""Largest number of tokens for which a constant mask is evaluated."""

NODES = 200
"""Largest number of nodes that make a mask which is evaluated."""


def constant_slice(recipe: Recipe) -> list[fx.Node] | None:
    """The nodes that make the recipe, operands first; None where a tensor input is among them."""
    steps = {s.node for s in recipe.steps if isinstance(s, Again)}
    seen: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> bool:
        if node in seen or isinstance(node.meta.get("val"), torch.SymInt):
            seen[node] = None
            return True
        if node.op == "get_attr":
            seen[node] = None
            return attribute(node) is not None
        if node.op != "call_function" or _random(node) or len(seen) > NODES:
            return False
        inputs = node.all_input_nodes[1:] if node in steps else node.all_input_nodes
        ok = all(visit(n) for n in inputs)
        seen[node] = None
        return ok

    return list(seen) if visit(recipe.base) and all(visit(s) for s in steps) else None


def _random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers."""
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return seeded or any(x in op_name(node) for x in ("rand", "dropout", "bernoulli", "normal_"))


def evaluate(recipe: Recipe, nodes: list[fx.Node]) -> Tensor | None:
    """The recipe's real value on the CPU; None where it cannot be computed without a call."""
    values: dict[fx.Node, Any] = {}
    steps = {s.node for s in recipe.steps if isinstance(s, Again)} - {recipe.base}
    try:
        with unset_fake_temporarily(), torch.no_grad():
            for node in nodes:
                if node not in steps:
                    values[node] = _value(node, values)
            out, _ = replay(recipe, Tensors(values.__getitem__))
    except (RuntimeError, TypeError, KeyError, ValueError):
        return None
    return out if isinstance(out, Tensor) else None


def _value(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The real value of one node whose operands have theirs."""
    symbolic = node.meta.get("val")
    if isinstance(symbolic, torch.SymInt):
        return int(expression(symbolic))
    if node.op == "get_attr":
        return attribute(node)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    assert callable(node.target)
    return node.target(*args, **kwargs)


def constant(x: Any) -> float | None:
    """The value of a number, or of a node that fills a tensor with one; else None."""
    if isinstance(x, (int, float)):
        return float(x)
    if not isinstance(x, fx.Node):
        return None
    name = op_name(x)
    if x.op == "get_attr":
        held = attribute(x)
        return float(held) if held is not None and held.numel() == 1 else None
    if name in operators.ZEROS:
        return 0.0
    if name in ("full", "full_like", "new_full", "scalar_tensor"):
        number = x.args[{"scalar_tensor": 0, "new_full": 2}.get(name, 1)]
        return float(number) if isinstance(number, (int, float)) else None
    if name in operators.CASTS | operators.SHAPES:
        return constant(x.args[0])
    return None


def is_zero(x: Any) -> bool:
    """Whether a number or a tensor is 0 throughout."""
    return constant(x) == 0
