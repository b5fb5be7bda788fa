"""matching.constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import attribute, op_name
from attnpass.matching.recipe import CASTS, SHAPE_OPS, Like, Recipe, _replay
from attnpass.torch_internals import expression, unset_fake_temporarily

EVALUATED = 4096
"""Largest number of tokens for which a constant mask is evaluated."""


def constant_slice(recipe: Recipe) -> list[fx.Node] | None:
    """The nodes that make the recipe, operands first; None where a tensor input is among them."""
    steps = {s for s in recipe.steps if isinstance(s, fx.Node)}
    like = [size for s in recipe.steps if isinstance(s, Like) for size in s.node.meta["val"].shape]
    if not all(isinstance(size, int) for size in like):
        return None
    seen: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> bool:
        if node in seen or isinstance(node.meta.get("val"), torch.SymInt):
            seen[node] = None
            return True
        if node.op == "get_attr":
            seen[node] = None
            return attribute(node) is not None
        if node.op != "call_function" or _random(node) or len(seen) > 200:
            return False
        inputs = node.all_input_nodes[1:] if node in steps else node.all_input_nodes
        ok = all(visit(n) for n in inputs)
        seen[node] = None
        return ok

    return list(seen) if visit(recipe.base) and all(visit(s) for s in steps) else None


def _random(node: fx.Node) -> bool:
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return seeded or any(x in op_name(node) for x in ("rand", "dropout", "bernoulli", "normal_"))


def large_constant(nodes: list[fx.Node]) -> bool:
    """A literal that may matter only at sizes that no trial reaches (a window, an offset)."""
    return any(
        isinstance(a, (int, float)) and not isinstance(a, bool) and 1 < abs(a) < 2**31
        for n in nodes
        if op_name(n) not in SHAPE_OPS
        for a in n.args
    )


def evaluate(recipe: Recipe, nodes: list[fx.Node], at: dict[Any, int]) -> Tensor | None:
    """The factor's real value on the CPU, symbolic sizes replaced as in ``at``."""
    values: dict[fx.Node, Any] = {}
    steps = {s for s in recipe.steps if isinstance(s, fx.Node)} - {recipe.base}
    try:
        with unset_fake_temporarily(), torch.no_grad():
            for node in nodes:
                symbolic = node.meta.get("val")
                if isinstance(symbolic, torch.SymInt):
                    values[node] = int(expression(symbolic).subs(at))
                elif node.op == "get_attr":
                    values[node] = attribute(node)
                elif node not in steps:
                    args = fx.map_arg(node.args, values.__getitem__)
                    kwargs = dict(fx.map_arg(node.kwargs, values.__getitem__))  # type: ignore[call-overload]
                    if "device" in kwargs:
                        kwargs["device"] = "cpu"
                    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            value = values[recipe.base]
            value = ~value.bool() if recipe.negate else value
            for step in recipe.steps:
                value = _replay(step, value, values.__getitem__)
    except (RuntimeError, TypeError, KeyError, ValueError):
        return None
    return value if isinstance(value, Tensor) else None


def constant(x: Any) -> float | None:
    """The value of a number or of a node that fills a tensor with one."""
    if isinstance(x, (int, float)):
        return float(x)
    if not isinstance(x, fx.Node):
        return None
    name = op_name(x)
    if x.op == "get_attr":
        held = attribute(x)
        return float(held) if held is not None and held.numel() == 1 else None
    if name in ("zeros", "zeros_like", "new_zeros"):
        return 0.0
    if name in ("full", "full_like", "new_full", "scalar_tensor"):
        value = x.args[0] if name == "scalar_tensor" else x.args[2 if name == "new_full" else 1]
        return float(value) if isinstance(value, (int, float)) else None
    if name in CASTS | SHAPE_OPS:
        return constant(x.args[0])
    return None
