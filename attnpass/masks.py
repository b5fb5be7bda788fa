"""What a mask is: nothing, causal, padding, window or arbitrary; proven, never named.

A mask is taken apart into kept-position factors (bool) and float biases. A factor that depends on
no input is evaluated for real; one that is the same for all queries is key padding; any other is
arbitrary. Nothing is inferred from a mask being there.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from attnpass.axes import Axes, expr, op_name

FILL = -1e4
"""A logit at or below this, added or set, is a mask: exp(-1e4) is 0 in every dtype."""

FIRST_HEAD = "first head"
"""A recipe step: keep one of the heads over which a mask was expanded."""

ABOVE = "above the fill"
"""A recipe step: a float mask as kept positions."""

SHAPE_OPS = frozenset(
    {
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "permute",
        "transpose",
        "flatten",
        "unflatten",
        "slice",
        "select",
        "_unsafe_view",
        "contiguous",
        "clone",
        "alias",
        "detach",
    }
)
REGROUP = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
CASTS = frozenset({"to", "_to_copy", "type_as", "float", "lift_fresh_copy"})
EVALUATED = 4096
"""Largest number of tokens for which a constant mask is evaluated."""


@dataclass(frozen=True)
class Like:
    """A recipe step: expand to the shape of a node."""

    node: fx.Node


@dataclass(frozen=True)
class FirstOf:
    """A recipe step: a leading axis of batch and ``heads`` repeats, split and cut to one head."""

    heads: int


Step = fx.Node | int | float | str | Like | FirstOf


@dataclass(frozen=True)
class Recipe:
    """A tensor to be rebuilt in the graph: ``base``, negated or not, then ``steps`` replayed.

    A step is a node (its operator is applied again), an int (unsqueezed in front to that rank), a
    float (multiplied), ``FIRST_HEAD`` (a mask repeated for every head, cut to one), ``ABOVE``,
    ``Like`` (expanded to the shape of a node) or ``FirstOf`` (then already ``[B, 1, 1, S]``).
    """

    base: fx.Node
    negate: bool = False
    steps: tuple[Step, ...] = ()

    def on(self, base: Any, flip: bool = False, rank: int | None = None) -> Recipe:
        """The same steps on another base, after lifting it to ``rank`` dimensions."""
        lift: tuple[Step, ...] = ()
        if rank is not None and rank != base.meta["val"].dim():
            lift = (rank,)
        return Recipe(base, self.negate ^ flip, lift + self.steps)

    def part(self, base: Any, whole: fx.Node, flip: bool = False) -> Recipe:
        """The same steps on an operand of ``whole``, which may be smaller than it by broadcast.

        A later view needs the full shape.
        """
        out = self.on(base, flip, whole.meta["val"].dim())
        views = {op_name(s) for s in self.steps if isinstance(s, fx.Node)} & REGROUP
        if not views or self._keeps_rows(base.meta["val"], whole.meta["val"]):
            return out
        lift = out.steps[: len(out.steps) - len(self.steps)]
        return Recipe(base, out.negate, (*lift, Like(whole), *self.steps))

    def _keeps_rows(self, part: Tensor, whole: Tensor) -> bool:
        """Whether the steps' views mean the same on ``part``, one row that stands for all.

        They do where only the leading axes are regrouped (equal trailing sizes prove it) and the
        number of rows is left open.
        """
        if part.shape == whole.shape:
            return True
        one_row = part.dim() == whole.dim() and part.shape[-2] == 1
        if not one_row or part.shape[-1] != whole.shape[-1] or part.shape[:-2] != whole.shape[:-2]:
            return False
        return all(
            s.meta["val"].shape[-2:] == whole.shape[-2:] and s.args[1][-2] == -1  # type: ignore[index]
            for s in self.steps
            if isinstance(s, fx.Node) and op_name(s) in REGROUP
        )


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
        inner = recipe if name in CASTS else replace(recipe, steps=_shaped(node, recipe))
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


def constant(x: Any) -> float | None:
    """The value of a number or of a node that fills a tensor with one."""
    if isinstance(x, (int, float)):
        return float(x)
    if not isinstance(x, fx.Node):
        return None
    name = op_name(x)
    if name in ("zeros", "zeros_like", "new_zeros"):
        return 0.0
    if name in ("full", "full_like", "new_full", "scalar_tensor"):
        value = x.args[0] if name == "scalar_tensor" else x.args[2 if name == "new_full" else 1]
        return float(value) if isinstance(value, (int, float)) else None
    if name in CASTS | SHAPE_OPS:
        return constant(x.args[0])
    return None


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
    mask: Mask, recipes: list[Recipe], sizes: tuple[Any, Any], axes: dict[fx.Node, Axes]
) -> None:
    """Sort bool factors into ``mask``; ``sizes`` are T and S, ``axes`` the graph's provenance."""
    for recipe in (c for r in recipes for c in conjuncts(r)):
        kind = _constant_kind(recipe, sizes)
        if kind == "all":
            continue
        if kind == "causal":
            mask.causal = True
        else:
            padding = None if kind else _key_padding(recipe, axes)
            mask.keeps.append(padding or recipe)
            kind = kind or ("padding" if padding else "arbitrary")
        mask.factors.add(kind)


def _key_padding(recipe: Recipe, axes: dict[fx.Node, Axes]) -> Recipe | None:
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
        if isinstance(heads, int):
            return Recipe(recipe.base, recipe.negate, (*recipe.steps, FirstOf(heads)))
    if len(shape) == 4 and len(made) == 4 and {f.kind for f in made[1]} == {"repeat"}:
        return Recipe(recipe.base, recipe.negate, (*recipe.steps, FIRST_HEAD))
    return None


def recipe_shape(recipe: Recipe) -> Any:
    """The shape that the recipe gives, None where it cannot be replayed on fake tensors."""
    value = recipe.base.meta["val"]
    try:
        with value.fake_mode:
            for step in recipe.steps:
                value = _replay(step, value, lambda n: n.meta["val"])
    except RuntimeError:
        # a view that does not fit the factor alone
        return None
    return value.shape


def _replay(step: Step, value: Tensor, look: Any) -> Tensor:
    if step == FIRST_HEAD:
        return value[:, :1]
    if step == ABOVE:
        return value > FILL
    if isinstance(step, FirstOf):
        split: Tensor = value.unflatten(0, (-1, step.heads))
        return split[:, :1]
    if isinstance(step, Like):
        return value.expand(step.node.meta["val"].shape)
    if isinstance(step, float):
        return value * step
    if isinstance(step, int):
        return value[(None,) * (step - value.dim())]
    assert isinstance(step, fx.Node)
    rest = fx.map_arg(step.args[1:], look)
    return step.target(value, *rest, **step.kwargs)  # type: ignore[operator, no-any-return]


def _constant_kind(recipe: Recipe, sizes: tuple[Any, Any]) -> str | None:
    """``all``, ``causal``, ``window`` or ``arbitrary`` for a factor without inputs, else None."""
    nodes = _slice(recipe)
    if nodes is None:
        return None
    symbols = sorted({s for x in sizes for s in getattr(expr(x), "free_symbols", ())}, key=str)
    if symbols and _large_constant(nodes):
        return "arbitrary"
    found = set()
    for trial in range(2 if symbols else 1):
        at = {s: 7 + 6 * i + 12 * trial for i, s in enumerate(symbols)}
        t, s = (
            int(expr(x).subs(at)) if symbols and hasattr(expr(x), "subs") else x for x in sizes
        )
        if not isinstance(t, int) or not isinstance(s, int) or max(t, s) > EVALUATED:
            return "arbitrary"
        value = _evaluate(recipe, nodes, at)
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


def _slice(recipe: Recipe) -> list[fx.Node] | None:
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
        if node.op != "call_function" or "rand" in op_name(node) or len(seen) > 200:
            return False
        inputs = node.all_input_nodes[1:] if node in steps else node.all_input_nodes
        ok = all(visit(n) for n in inputs)
        seen[node] = None
        return ok

    return list(seen) if visit(recipe.base) and all(visit(s) for s in steps) else None


def _large_constant(nodes: list[fx.Node]) -> bool:
    """A literal that may matter only at sizes that no trial reaches (a window, an offset)."""
    return any(
        isinstance(a, (int, float)) and not isinstance(a, bool) and 1 < abs(a) < 2**31
        for n in nodes
        if op_name(n) not in SHAPE_OPS
        for a in n.args
    )


def _evaluate(recipe: Recipe, nodes: list[fx.Node], at: dict[Any, int]) -> Tensor | None:
    """The factor's real value on the CPU, symbolic sizes replaced as in ``at``."""
    values: dict[fx.Node, Any] = {}
    steps = {s for s in recipe.steps if isinstance(s, fx.Node)} - {recipe.base}
    try:
        with unset_fake_temporarily(), torch.no_grad():
            for node in nodes:
                symbolic = node.meta.get("val")
                if isinstance(symbolic, torch.SymInt):
                    values[node] = int(symbolic.node.expr.subs(at))
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


def constant_mask(recipe: Recipe, sizes: tuple[Any, Any]) -> bool:
    """Whether a float term depends on no input and only ever adds 0 or -inf."""
    nodes = _slice(recipe)
    fixed = all(isinstance(s, int) and s <= EVALUATED for s in sizes)
    value = _evaluate(recipe, nodes, {}) if nodes is not None and fixed else None
    return value is not None and bool(((value == 0) | (value == -torch.inf)).all())


def is_metadata(node: fx.Node) -> bool:
    """Whether a user only reads shape, dtype or device."""
    return op_name(node) in (
        "sym_size",
        "sym_numel",
        "sym_stride",
        "zeros_like",
        "ones_like",
        "empty_like",
        "new_ones",
        "new_zeros",
        "new_full",
    ) or (node.target in (getattr, operator.attrgetter))
