"""The parts of a mask: kept positions, float biases, and the fill of masked logits.

A float mask is taken apart into the positions that it keeps and the biases that it adds; kept
positions into factors that all must hold. Each factor is named by what is proven of it: causal,
padding, window, or arbitrary.

Soundness: the factors together keep exactly the positions that the mask keeps, and the biases add
exactly what it adds elsewhere. Conditions:

1. A number counts as a fill only at ``recipe.FILL`` or below, where exp() is 0 in every dtype.
2. A selection (where, masked_fill) is a mask only if its other branch is a float tensor, which is
   read on, or 0.
3. A sum is taken apart only where nothing scales one side (no ``alpha``).
4. ``padding`` is claimed only of a factor that has one row for all queries and one head for all
   heads, by its shape or because its heads are a ``repeat`` (never because sizes are equal).
5. Patterns of factors that no input reaches: see ``patterns``.
6. One fill stands for a mask only where every position that is not kept holds exactly this number:
   two masks that are added, or a fill over another one or over a bias, are ``mixed_fills``.

The presence of a mask proves nothing about it. A factor of which nothing is proven is
``arbitrary``, and the rewrite applies it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from attnpass.graph import op_name, operand, operators, value
from attnpass.matching.constants import constant, is_zero
from attnpass.matching.factors import Axes
from attnpass.matching.layout import Lead
from attnpass.matching.patterns import Sizes, constant_pattern
from attnpass.matching.recipe import (
    FILL,
    Again,
    Cast,
    FirstHead,
    FirstOf,
    Recipe,
    Step,
    recipe_shape,
)
from attnpass.torch_internals import expression


@dataclass
class Mask:
    """A site's mask: proven factors, kept positions still to be applied, float biases, fill."""

    factors: set[str] = field(default_factory=set)
    causal: bool = False
    keeps: list[Recipe] = field(default_factory=list)
    biases: list[Recipe] = field(default_factory=list)
    fill: float | None = None
    added: bool = False
    mixed_fills: bool = False


@dataclass(frozen=True)
class Keep:
    """Positions that a float mask keeps, and the fill at the others.

    ``overlaid``: at the others the mask holds more, or something else, than this one fill.
    ``replaces``: it takes the place of a bias there, and nothing smaller can be told from it.
    """

    recipe: Recipe
    fill: float
    overlaid: bool = False
    replaces: bool = False


@dataclass(frozen=True)
class Bias:
    """A float tensor that is added to the logits."""

    recipe: Recipe


Part = Keep | Bias


def additive(recipe: Recipe) -> Iterator[Part]:
    """The kept positions and the biases that a float term consists of; nothing for zeros."""
    if is_zero(recipe.base):
        return
    reader = _ADDITIVE.get(op_name(recipe.base))
    parts = reader(recipe) if reader else None
    yield from [Bias(recipe)] if parts is None else parts


def fill_of(x: Any) -> float | None:
    """The number that masked logits get, where ``x`` is one (condition 1); else None."""
    found = constant(x)
    return found if found is not None and found <= FILL else None


def _reshaped(recipe: Recipe) -> list[Part] | None:
    """A float tensor in another shape or dtype."""
    node = recipe.base
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or not value(inner).is_floating_point():
        return None
    cast = op_name(node) in operators.CASTS
    steps = (Cast(value(node).dtype), *recipe.steps) if cast else _shaped(recipe)
    return list(additive(replace(recipe, base=inner, steps=steps)))


def _sum(recipe: Recipe) -> list[Part] | None:
    """Two float tensors added (condition 3)."""
    node = recipe.base
    if len(node.all_input_nodes) != 2 or node.kwargs:
        return None
    parts = [list(additive(recipe.part(x, node))) for x in node.all_input_nodes]
    fills = [any(isinstance(part, Keep) for part in found) for found in parts]
    both = [part for found in parts for part in found]
    # -inf plus anything is -inf
    once = all(part.fill == -math.inf for part in both if isinstance(part, Keep))
    return [_overlaid(part) for part in both] if all(fills) and not once else both


def _overlaid(part: Part) -> Part:
    return replace(part, overlaid=True) if isinstance(part, Keep) else part


def _over(keep: Keep, inner: list[Part], dtype: torch.dtype) -> list[Part]:
    """A fill over other parts: it replaces them (condition 6)."""
    if keep.fill <= torch.finfo(dtype).min and all(isinstance(part, Bias) for part in inner):
        return [replace(keep, replaces=bool(inner)), *inner]
    same = all(isinstance(part, Keep) and part.fill == keep.fill for part in inner)
    return [keep, *inner] if same else [_overlaid(part) for part in (keep, *inner)]


def _where(recipe: Recipe) -> list[Part] | None:
    """``where(condition, bias or 0, fill)``, or the other way round (condition 2)."""
    node = recipe.base
    if len(node.args) != 3:
        return None
    condition = recipe.part(operand(node), node)
    for kept, filled, flip in ((1, 2, False), (2, 1, True)):
        fill, other = fill_of(node.args[filled]), node.args[kept]
        if fill is None or not (constant(other) == 0 or _is_float(other)):
            continue
        keep = Keep(replace(condition, negate=True) if flip else condition, fill)
        if constant(other) == 0:
            return [keep]
        return _over(
            keep, list(additive(recipe.part(operand(node, kept), node))), value(node).dtype
        )
    return None


def _masked_fill(recipe: Recipe) -> list[Part] | None:
    """``bias.masked_fill(masked, fill)``."""
    node = recipe.base
    fill = fill_of(node.args[2])
    if fill is None:
        return None
    keep = Keep(recipe.part(operand(node, 1), node, flip=True), fill)
    return _over(keep, list(additive(recipe.part(operand(node), node))), value(node).dtype)


def _inverted(recipe: Recipe) -> list[Part] | None:
    """``(1 - kept.to(float)) * fill``."""
    node = recipe.base
    difference, fill = node.args[0], fill_of(node.args[1])
    if fill is None or not isinstance(difference, fx.Node):
        return None
    if op_name(difference) == "rsub" and difference.args[1] == 1:
        inner = difference.args[0]
    elif op_name(difference) == "sub" and constant(difference.args[0]) == 1:
        inner = difference.args[1]
    else:
        return None
    while isinstance(inner, fx.Node) and op_name(inner) in operators.CASTS:
        inner = inner.args[0]
    if not isinstance(inner, fx.Node) or value(inner).dtype != torch.bool:
        return None
    return [Keep(recipe.part(inner, node), fill)]


_ADDITIVE: dict[str, Callable[[Recipe], list[Part] | None]] = {
    **dict.fromkeys(operators.SHAPES | operators.CASTS, _reshaped),
    "add": _sum,
    "where": _where,
    "masked_fill": _masked_fill,
    "mul": _inverted,
}
"""How a float mask is read, by the operator that makes it; None where it is taken as a bias."""


def _is_float(x: Any) -> bool:
    return isinstance(x, fx.Node) and value(x).is_floating_point()


def _shaped(recipe: Recipe) -> tuple[Step, ...]:
    """The recipe's steps with the shape operator at its base in front.

    An expand that only broadcasts is left out, so that a factor that is the same for all queries
    stays visibly so, unless a later view needs its full shape.
    """
    node = recipe.base
    broadcast = op_name(node) == "expand" and value(node).dim() == value(operand(node)).dim()
    if broadcast and not recipe.regroups:
        return recipe.steps
    return (Again(node), *recipe.steps)


def conjuncts(recipe: Recipe) -> Iterator[Recipe]:
    """The factors of kept positions that all must hold."""
    node = recipe.base
    name, args = op_name(node), node.args
    both = (
        ("logical_or", "bitwise_or", "__or__")
        if recipe.negate
        else ("logical_and", "bitwise_and", "__and__")
    )
    # a logical operator takes numbers, too, and only what is bool is a mask
    found = [x.meta.get("val") for x in node.all_input_nodes]
    logical = all(getattr(x, "dtype", None) == torch.bool for x in found)
    if name in both and len(node.all_input_nodes) == 2 and logical:
        for x in node.all_input_nodes:
            yield from conjuncts(recipe.part(x, node))
    elif name in ("logical_not", "bitwise_not") and logical:
        yield from conjuncts(recipe.on(operand(node), flip=True))
    elif (
        name in operators.SHAPES | operators.CASTS
        and isinstance(args[0], fx.Node)
        and value(args[0]).dtype == torch.bool
    ):
        steps = recipe.steps if name in operators.CASTS else _shaped(recipe)
        yield from conjuncts(Recipe(args[0], recipe.negate, steps))
    else:
        yield recipe


def classify(
    mask: Mask, recipes: list[Recipe], sizes: Sizes, axes: Mapping[fx.Node, Axes], lead: Lead
) -> None:
    """Sort kept positions into ``mask``, each factor under the name of what is proven of it.

    Args:
        mask: what is known so far. recipes: kept positions. sizes: T and S.
        axes: provenance of the graph's tensors. lead: the leading axes of the logits.
    """
    for recipe in (c for r in recipes for c in conjuncts(r)):
        pattern = constant_pattern(recipe, sizes)
        if pattern == "all":
            continue
        if pattern == "causal":
            mask.causal = True
        else:
            padding = None if pattern else _key_padding(recipe, axes, lead)
            mask.keeps.append(padding or recipe)
            pattern = pattern or ("padding" if padding else "arbitrary")
        mask.factors.add(pattern)


def _key_padding(recipe: Recipe, axes: Mapping[fx.Node, Axes], lead: Lead) -> Recipe | None:
    """The recipe as ``[B|1, 1, 1, S]`` where it is one for all heads and queries (condition 4)."""
    shape = recipe_shape(recipe)
    if shape is None or (len(shape) >= 2 and expression(shape[-2]) != 1):
        return None
    if len(shape) < 3 or expression(shape[-3]) == 1:
        return recipe
    last = recipe.steps[-1] if recipe.steps else Again(recipe.base)
    made = axes.get(last.node, ()) if isinstance(last, Again) else ()
    if len(shape) == 3 and len(made) == 3 and made[0] and made[0][-1].kind == "repeat":
        heads = made[0][-1].size
        if lead.count == 1 and heads == lead.heads:
            return replace(recipe, steps=(*recipe.steps, FirstOf(heads)))
    flat = lead.count == 2 and lead.split < 0
    if flat and len(shape) == 4 and len(made) == 4 and {f.kind for f in made[1]} == {"repeat"}:
        return replace(recipe, steps=(*recipe.steps, FirstHead()))
    return None
