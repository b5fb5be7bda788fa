"""What a mask is: nothing, causal, padding, window or arbitrary; proven, never named.

A mask is taken apart into kept-position factors (bool) and float biases. A factor that depends on
no input is evaluated for real; one that is the same for all queries is key padding; any other is
arbitrary. Nothing is inferred from a mask being there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph import op_name
from attnpass.matching.constants import (
    EVALUATED,
    constant,
    constant_slice,
    evaluate,
    large_constant,
)
from attnpass.matching.factors import Axes
from attnpass.matching.layout import Lead
from attnpass.matching.recipe import (
    CASTS,
    FILL,
    FIRST_HEAD,
    REGROUP,
    SHAPE_OPS,
    FirstOf,
    Recipe,
    Step,
    recipe_shape,
)
from attnpass.torch_internals import expression as expr


@dataclass
class Mask:
    """A site's mask: proven factors, kept positions still to be applied, float biases, fill."""

    factors: set[str] = field(default_factory=set)
    causal: bool = False
    keeps: list[Recipe] = field(default_factory=list)
    biases: list[Recipe] = field(default_factory=list)
    fill: float | None = None
    added: bool = False


def additive(recipe: Recipe) -> Iterator[tuple[str, Recipe, float]]:
    """Split a float term into ``("keep", bool recipe, fill)`` and ``("bias", recipe, 0)``."""
    node = recipe.base
    name, args = op_name(node), node.args
    if _zero(node):
        return
    if name in SHAPE_OPS | CASTS and isinstance(args[0], fx.Node):
        steps = (node.meta["val"].dtype, *recipe.steps) if name in CASTS else _shaped(node, recipe)
        inner = replace(recipe, steps=steps)
        inner = replace(inner, base=args[0])
        if args[0].meta["val"].dtype != torch.bool and args[0].meta["val"].is_floating_point():
            yield from additive(inner)
            return
    elif name == "add" and len(node.all_input_nodes) == 2 and not node.kwargs:
        for x in node.all_input_nodes:
            yield from additive(recipe.part(x, node))
        return
    elif name == "where" and len(args) == 3:
        yes, no = (constant(x) for x in args[1:])
        cond = recipe.part(args[0], node)
        if no is not None and no <= FILL and (yes == 0 or _float_node(args[1])):
            yield "keep", cond, no
            if yes != 0:
                yield from additive(recipe.part(args[1], node))
            return
        if yes is not None and yes <= FILL and (no == 0 or _float_node(args[2])):
            yield "keep", replace(cond, negate=True), yes
            if no != 0:
                yield from additive(recipe.part(args[2], node))
            return
    elif name == "masked_fill" and (constant(args[2]) or 0.0) <= FILL:
        yield "keep", recipe.part(args[1], node, flip=True), float(constant(args[2]) or 0.0)
        yield from additive(recipe.part(args[0], node))
        return
    elif name == "mul" and (found := _inverted(node)) is not None:
        yield "keep", recipe.part(found[0], node), found[1]
        return
    yield "bias", recipe, 0.0


def _inverted(node: fx.Node) -> tuple[fx.Node, float] | None:
    """``(1 - bool.to(float)) * fill`` -> the bool node and the fill."""
    a, b = node.args
    fill = constant(b)
    if fill is None or fill > FILL or not isinstance(a, fx.Node):
        return None
    if op_name(a) == "rsub" and a.args[1] == 1:
        inner = a.args[0]
    elif op_name(a) == "sub" and constant(a.args[0]) == 1:
        inner = a.args[1]
    else:
        return None
    while isinstance(inner, fx.Node) and op_name(inner) in CASTS:
        inner = inner.args[0]
    if isinstance(inner, fx.Node) and inner.meta["val"].dtype == torch.bool:
        return inner, fill
    return None


def _float_node(x: Any) -> bool:
    return isinstance(x, fx.Node) and x.meta["val"].is_floating_point()


def _zero(node: Any) -> bool:
    return op_name(node) in ("zeros", "zeros_like", "new_zeros") or constant(node) == 0


def _shaped(node: fx.Node, recipe: Recipe) -> tuple[Step, ...]:
    """The recipe's steps behind the shape operator ``node``.

    An expand that only broadcasts is left out, so that what is the same for all queries stays
    visibly so, unless a later view needs its full shape.
    """
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    if op_name(node) == "expand" and node.meta["val"].dim() == rank:
        regrouped = {op_name(s) for s in recipe.steps if isinstance(s, fx.Node)} & REGROUP
        if not regrouped:
            return recipe.steps
    return (node, *recipe.steps)


def conjuncts(recipe: Recipe) -> Iterator[Recipe]:
    """A bool recipe as factors that all must hold."""
    node = recipe.base
    name, args = op_name(node), node.args
    both = (
        ("logical_or", "bitwise_or", "__or__")
        if recipe.negate
        else ("logical_and", "bitwise_and", "__and__")
    )
    if name in both and len(node.all_input_nodes) == 2:
        for x in args:
            yield from conjuncts(recipe.part(x, node))
    elif name in ("logical_not", "bitwise_not"):
        yield from conjuncts(recipe.on(args[0], flip=True))
    elif (
        name in SHAPE_OPS | CASTS
        and isinstance(args[0], fx.Node)
        and (args[0].meta["val"].dtype == torch.bool and name != "index")
    ):
        steps = recipe.steps if name in CASTS else _shaped(node, recipe)
        yield from conjuncts(Recipe(args[0], recipe.negate, steps))
    else:
        yield recipe


def classify(
    mask: Mask,
    recipes: list[Recipe],
    sizes: tuple[Any, Any],
    axes: dict[fx.Node, Axes],
    lead: Lead,
) -> None:
    """Sort bool factors into ``mask``.

    ``sizes`` are T and S, ``axes`` the graph's provenance, ``lead`` the logits' leading axes.
    """
    for recipe in (c for r in recipes for c in conjuncts(r)):
        kind = _constant_kind(recipe, sizes)
        if kind == "all":
            continue
        if kind == "causal":
            mask.causal = True
        else:
            padding = None if kind else _key_padding(recipe, axes, lead)
            mask.keeps.append(padding or recipe)
            kind = kind or ("padding" if padding else "arbitrary")
        mask.factors.add(kind)


def _key_padding(recipe: Recipe, axes: dict[fx.Node, Axes], lead: Lead) -> Recipe | None:
    """The recipe as ``[B|1, 1, 1, S]`` if it is the same for all heads and queries, else None."""
    shape = recipe_shape(recipe)
    if shape is None or (len(shape) >= 2 and expr(shape[-2]) != 1):
        return None
    if len(shape) < 3 or expr(shape[-3]) == 1:
        return recipe
    last = recipe.steps[-1] if recipe.steps else recipe.base
    made = axes.get(last, ()) if isinstance(last, fx.Node) else ()
    if len(shape) == 3 and len(made) == 3 and made[0] and made[0][-1].kind == "repeat":
        heads = made[0][-1].size
        if lead.count == 1 and heads == lead.heads:
            return Recipe(recipe.base, recipe.negate, (*recipe.steps, FirstOf(heads)))
    flat = lead.count == 2 and lead.split < 0
    if flat and len(shape) == 4 and len(made) == 4 and {f.kind for f in made[1]} == {"repeat"}:
        return Recipe(recipe.base, recipe.negate, (*recipe.steps, FIRST_HEAD))
    return None


def _constant_kind(recipe: Recipe, sizes: tuple[Any, Any]) -> str | None:
    """``all``, ``causal``, ``window`` or ``arbitrary`` for a factor without inputs, else None."""
    nodes = constant_slice(recipe)
    if nodes is None:
        return None
    symbols = sorted({s for x in sizes for s in getattr(expr(x), "free_symbols", ())}, key=str)
    if symbols and large_constant(nodes):
        return "arbitrary"
    found = set()
    for trial in range(2 if symbols else 1):
        at = {s: 7 + 6 * i + 12 * trial for i, s in enumerate(symbols)}
        t, s = (
            int(expr(x).subs(at)) if symbols and hasattr(expr(x), "subs") else x for x in sizes
        )
        if not isinstance(t, int) or not isinstance(s, int) or max(t, s) > EVALUATED:
            return "arbitrary"
        value = evaluate(recipe, nodes, at)
        if value is None:
            return "arbitrary"
        found.add(_shape_of_mask(value.bool(), t, s))
    return found.pop() if len(found) == 1 else "arbitrary"


def _shape_of_mask(value: Tensor, t: int, s: int) -> str:
    if bool(value.all()):
        return "all"
    try:
        full = value.expand(*value.shape[:-2], t, s) if value.dim() >= 2 else value.expand(t, s)
    except RuntimeError:
        return "arbitrary"
    if not bool((full == full.reshape(-1, t, s)[0]).all()):
        return "arbitrary"
    plane = full.reshape(-1, t, s)[0]
    below = torch.ones(t, s, dtype=torch.bool).tril()
    if t == s and torch.equal(plane, below):
        return "causal"
    if not bool(plane.any()):
        return "arbitrary"
    distance = torch.arange(t).unsqueeze(1) - torch.arange(s)
    low, high = int(distance[plane].min()), int(distance[plane].max())
    band = (distance >= low) & (distance <= high)
    return "window" if t == s and torch.equal(plane, band) else "arbitrary"


def constant_mask(recipe: Recipe, sizes: tuple[Any, Any]) -> bool:
    """Whether a float term depends on no input and only ever adds 0 or -inf."""
    nodes = constant_slice(recipe)
    fixed = all(isinstance(s, int) and s <= EVALUATED for s in sizes)
    value = evaluate(recipe, nodes, {}) if nodes is not None and fixed else None
    return value is not None and bool(((value == 0) | (value == -torch.inf)).all())
