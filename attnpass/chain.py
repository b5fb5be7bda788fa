"""The walk from a softmax up to the logits' product, and down to the one that reads the weights.

What stands between is collected as terms; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from attnpass.axes import op_name
from attnpass.contraction import Contraction, contraction
from attnpass.masks import FILL, constant, is_metadata
from attnpass.normalize import writes

SOFTMAX = frozenset({"softmax", "_softmax", "special_softmax", "_safe_softmax"})
CASTS = frozenset({"to", "_to_copy", "type_as", "float", "half", "bfloat16"})
COPIES = frozenset({"contiguous", "clone", "alias", "detach", "lift_fresh"})
VIEWS = frozenset(
    {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten"}
)


class Refuse(Exception):
    """This anchor is not a site: a decline code, a hint, and the node that decided."""

    def __init__(self, code: str, hint: str, node: fx.Node) -> None:
        super().__init__(code, hint)
        self.code, self.hint, self.node = code, hint, node


@dataclass
class Term:
    """One step from the logits' product towards softmax.

    ``kind``: ``scale`` (value a number), ``temper`` (a tensor factor), ``add`` (a tensor),
    ``select`` (value a fill, node the condition, ``flip`` if kept where it is False), ``view``,
    ``softcap``, ``same`` (a cast, a copy, a subtracted maximum).
    """

    kind: str
    at: fx.Node
    node: Any = None
    value: float = 0.0
    flip: bool = False


@dataclass
class Chain:
    """An anchor with both products and all that is between.

    Attributes:
        scores: the product of queries and keys.
        terms: from that product to softmax.
        softmax: the anchor. dim: its axis, counted from the end (-1 is last).
        after: nodes from softmax to the second product, in order.
        output: the product of weights and values.
        dropout: drop probability on the weights (0 when inactive).
        escapes: nodes that read the weights or the logits elsewhere.
    """

    scores: Contraction
    terms: list[Term]
    softmax: fx.Node
    dim: int
    after: list[fx.Node] = field(default_factory=list)
    output: Contraction | None = None
    dropout: float = 0.0
    escapes: list[fx.Node] = field(default_factory=list)


def chain(anchor: fx.Node) -> Chain:
    """The chain around a softmax node.

    Raises:
        Refuse: it is not attention, or holds a step that is not understood.
    """
    rank = anchor.meta["val"].dim()
    dim = int(anchor.args[1])  # type: ignore[arg-type]
    found = _up(anchor.args[0], anchor, 0)  # type: ignore[arg-type]
    if isinstance(found, Refuse):
        raise found
    scores, terms = found
    out = Chain(scores, terms, anchor, dim if dim < 0 else dim - rank)
    _down(out)
    inside = {t.at for t in terms} | {scores.node, anchor, *out.after}
    for node in [scores.node, *(t.at for t in terms)]:
        if any(writes(u) and u.args[0] is node for u in node.users):
            raise Refuse("MUTATED_ALIAS", "the logits are written in place through a view", node)
        for user in node.users:
            if user not in inside and not is_metadata(user) and not _is_maximum(user):
                out.escapes.append(user)
    return out


Up = tuple[Contraction, list[Term]]


def _up(node: fx.Node, below: fx.Node, depth: int) -> Up | Refuse:
    """From a softmax operand up to a product of two activations."""
    product = contraction(node)
    if product is not None:
        terms = []
        if product.added is not None:
            terms.append(Term("add", node, product.added))
        return product, terms
    if node.op != "call_function" or depth > 40:
        return Refuse("NOT_ATTENTION:pooling", "softmax of something that is no product", below)
    name = op_name(node)
    reader = _READERS.get(name)
    options = reader(node) if reader else []
    refusal: Refuse | None = None
    for operand, term in options:
        found = _up(operand, node, depth + 1)
        if not isinstance(found, Refuse):
            return found[0], [*found[1], term]
        refusal = refusal or found
    if refusal is not None:
        return refusal
    if name in ("linear", "convolution", "conv2d", "addmm", "conv1d"):
        return Refuse(
            "NOT_ATTENTION:router", "softmax of a projection, not of queries and keys", node
        )
    return Refuse(
        f"UNKNOWN_SCORE_OP:{name or node.target}", "a step before softmax is not understood", node
    )


Options = list[tuple[fx.Node, Term]]


def _same(node: fx.Node) -> Options:
    return [(node.args[0], Term("same", node))]  # type: ignore[list-item]


def _view(node: fx.Node) -> Options:
    return [(node.args[0], Term("view", node))]  # type: ignore[list-item]


def _scaled(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    inverse = op_name(node) == "div"
    if isinstance(b, (int, float)) and isinstance(a, fx.Node):
        return [(a, Term("scale", node, value=1 / b if inverse else float(b)))]
    out: Options = []
    for x, y in ((a, b), (b, a)):
        if isinstance(x, fx.Node) and isinstance(y, fx.Node) and not (inverse and x is b):
            out.append((x, Term("temper", node, y, flip=inverse)))
    return out


def _added(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    if node.kwargs.get("alpha", 1) != 1:
        return []
    if not isinstance(b, fx.Node):
        return [(a, Term("same", node))]  # type: ignore[list-item]
    return [(x, Term("add", node, y)) for x, y in ((a, b), (b, a)) if isinstance(x, fx.Node)]


def _subtracted(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    return (
        _same(node) if isinstance(b, fx.Node) and _is_maximum(b) and isinstance(a, fx.Node) else []
    )


def _is_maximum(node: fx.Node) -> bool:
    """A row maximum, which softmax does not feel (``x - x.max()``)."""
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[0], fx.Node):
        return _is_maximum(node.args[0])
    return op_name(node) in ("amax", "max") or (
        op_name(node) in CASTS | COPIES
        and isinstance(node.args[0], fx.Node)
        and _is_maximum(node.args[0])
    )


def _fill(x: Any) -> float | None:
    value = constant(x)
    return value if value is not None and value <= FILL else None


def _selected(node: fx.Node) -> Options:
    if op_name(node) == "masked_fill":
        fill = _fill(node.args[2])
        logits, mask = node.args[:2]
        if fill is None or not isinstance(logits, fx.Node):
            return []
        return [(logits, Term("select", node, mask, fill, flip=True))]
    cond, yes, no = node.args
    if (fill := _fill(no)) is not None and isinstance(yes, fx.Node):
        return [(yes, Term("select", node, cond, fill))]
    if (fill := _fill(yes)) is not None and isinstance(no, fx.Node):
        return [(no, Term("select", node, cond, fill, flip=True))]
    return []


def _clamped(node: fx.Node) -> Options:
    bound = _fill(node.args[1] if len(node.args) > 1 else node.kwargs.get("min"))
    return [] if bound is None or len(node.args) > 2 else _same(node)


def _capped(node: fx.Node) -> Options:
    return [(node.args[0], Term("softcap", node))]  # type: ignore[list-item]


_READERS: dict[str, Callable[[fx.Node], Options]] = {
    **dict.fromkeys(CASTS | COPIES, _same),
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(("mul", "div", "true_divide"), _scaled),
    "add": _added,
    "sub": _subtracted,
    "masked_fill": _selected,
    "where": _selected,
    "maximum": _clamped,
    "clamp": _clamped,
    "clamp_min": _clamped,
    "tanh": _capped,
}


def _down(out: Chain) -> None:
    """From softmax to the product with the values; records dropout and other readers."""
    node = out.softmax
    while True:
        onward: list[tuple[fx.Node, Contraction | None]] = []
        for user in node.users:
            if is_metadata(user):
                continue
            product = contraction(user)
            steps_on = op_name(user) in CASTS | COPIES | VIEWS | {"dropout", "native_dropout"}
            if product is not None and isinstance(product.node.meta["val"], Tensor):
                onward.append((user, product))
            elif steps_on and _leads_to_product(user, 0):
                onward.append((user, None))
            else:
                out.escapes.append(user)
        if not onward:
            code = "NOT_ATTENTION:gate" if node is out.softmax else "NOT_ATTENTION:weights"
            raise Refuse(code, "the softmax weights never meet values in a product", node)
        for other, _ in onward[1:]:
            out.escapes.append(other)
        node, product = onward[0]
        if product is not None:
            out.output = product
            return
        out.after.append(node)
        if op_name(node) == "dropout" and node.args[2]:
            out.dropout = float(node.args[1])  # type: ignore[arg-type]


def _leads_to_product(node: fx.Node, depth: int) -> bool:
    if contraction(node) is not None:
        return True
    through = op_name(node) in CASTS | COPIES | VIEWS | {"dropout"}
    return through and depth < 8 and any(_leads_to_product(u, depth + 1) for u in node.users)
