"""The walk from a softmax up to the logits' product, and down to the one that reads the weights.

What stands between is collected as terms; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from attnpass.axes import op_name
from attnpass.contraction import Contraction, contraction
from attnpass.functional import writes
from attnpass.layout import switched
from attnpass.masks import constant, is_metadata
from attnpass.recipe import FILL

SOFTMAX = frozenset({"softmax", "_softmax", "special_softmax", "_safe_softmax"})
CASTS = frozenset({"to", "_to_copy", "type_as", "float", "half", "bfloat16"})
COPIES = frozenset({"contiguous", "clone", "alias", "lift_fresh"})
VIEWS = frozenset(
    {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten"}
)
TRANSPOSES = frozenset({"transpose", "permute", "mT", "swapaxes"})


class Refuse(Exception):
    """This anchor is not a site: a decline code, a hint, and the node that decided."""

    def __init__(self, code: str, hint: str, node: fx.Node) -> None:
        super().__init__(code, hint)
        self.code, self.hint, self.node = code, hint, node


@dataclass
class Term:
    """One step from the logits' product towards softmax.

    ``kind``: ``scale`` (value a number), ``temper`` (a tensor factor), ``add`` (a tensor, ``flip``
    if subtracted), ``select`` (value a fill, node the condition, ``flip`` if kept where it is
    False), ``view``, ``turn`` (axes permuted), ``mix`` (heads combined by weights), ``softcap``,
    ``sink`` (a column joined), ``clamp`` (value a lower bound), ``maximum`` (subtracted),
    ``same`` (a cast, a copy).
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


Up = tuple[Contraction, list[Term]]


def chains(anchor: fx.Node) -> Iterator[Chain]:
    """Every chain around a softmax node: one for each product that its logits may come from.

    Raises:
        Refuse: there is none, or it holds a step that is not understood.
    """
    rank = anchor.meta["val"].dim()
    dim = int(anchor.args[1])  # type: ignore[arg-type]
    found = reached(anchor)
    ways = [x for x in found if not isinstance(x, Refuse)]
    if not ways:
        raise next(x for x in found if isinstance(x, Refuse))
    for scores, terms in ways:
        out = Chain(scores, terms, anchor, dim if dim < 0 else dim - rank)
        _down(out)
        _check(out)
        yield out


def reached(anchor: fx.Node) -> list[Up | Refuse]:
    """Every product that the logits of a softmax come from, and why other ways end."""
    return list(_up(anchor.args[0], anchor, set()))


def _check(out: Chain) -> None:
    """Refuse what reads or writes the map on its way; note who else reads it."""
    inside = {t.at for t in out.terms} | {out.scores.node, out.softmax, *out.after}
    for term in out.terms:
        if term.kind == "maximum" and not _row_maximum(term.node, out.dim):
            raise Refuse("UNKNOWN_SCORE_OP:sub", "a maximum over another axis", term.at)
    assert out.output is not None
    if switched(out.scores.node, out.output.node):
        hint = "gradients are switched inside the attention"
        raise Refuse("HOP_UNSUPPORTED", hint, out.output.node)
    for node in [out.scores.node, *(t.at for t in out.terms)]:
        if any(writes(u) and u.args[0] is node for u in node.users):
            raise Refuse("MUTATED_ALIAS", "the logits are written in place through a view", node)
        for user in node.users:
            if user not in inside and not is_metadata(user) and not _is_maximum(user):
                out.escapes.append(user)


def _up(node: Any, below: fx.Node, seen: set[fx.Node]) -> Iterator[Up | Refuse]:
    """From a softmax operand up to products of two activations, and why other ways end."""
    mixed = mixed_map(node)
    product = None if mixed is not None else contraction(node)
    if product is not None:
        yield product, [Term("add", node, product.added)] if product.added is not None else []
        return
    reader = _READERS.get(op_name(node))
    options = reader(node) if reader else []
    if mixed is not None:
        options = [(mixed, Term("mix", node))]
    if not options:
        yield _end(node, below)
    for operand, term in options:
        if operand not in seen:
            seen.add(operand)
            for found in _up(operand, node, seen):
                yield found if isinstance(found, Refuse) else (found[0], [*found[1], term])


_PARTS = VIEWS | TRANSPOSES | {"", "split", "split_with_sizes", "chunk", "unbind", "slice"}
_PARTS |= {"select", "topk", "relu", "gelu", "silu", "tanh"}


def _end(node: fx.Node, below: fx.Node) -> Refuse:
    """Why the way up ends at ``node``."""
    name = op_name(node)
    if node.op == "placeholder":
        return Refuse(
            "CROSS_GRAPH", "the logits come into this graph from outside (a graph break)", node
        )
    while name in _PARTS:
        if node.op != "call_function" or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
        name = op_name(node)
    if name in ("linear", "convolution", "conv2d", "addmm", "conv1d", "batch_norm"):
        return Refuse(
            "NOT_ATTENTION:router", "softmax of a projection, not of queries and keys", node
        )
    if node.op != "call_function" or name in ("embedding", "layer_norm", "mean", "sum"):
        return Refuse("NOT_ATTENTION:pooling", "softmax of something that is no product", below)
    return Refuse(
        f"UNKNOWN_SCORE_OP:{name or node.target}", "a step before softmax is not understood", node
    )


def mixed_map(node: fx.Node) -> Any:
    """The map whose heads ``node`` combines by weights, every position for itself; else None.

    A linear layer or norm on a map turned so that heads are last, a 1x1 convolution, an einsum
    with a matrix.
    """
    name, source = op_name(node), node.args[0] if node.args else None
    if name in ("linear", "layer_norm"):
        turned: Any = source
        while op_name(turned) in COPIES:
            turned = turned.args[0]
        found = op_name(turned) in TRANSPOSES and turned.meta["val"].dim() == 4
        one = name == "linear" or len(node.args[1]) == 1  # type: ignore[arg-type]
        return source if found and one else None
    if name == "conv2d":
        kernel = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
        return source if all(s == 1 for s in kernel) and node.meta["val"].dim() == 4 else None
    product = contraction(node) if name == "einsum" else None
    if product is None or product.b.op not in ("placeholder", "get_attr"):
        return None
    whole = len(product.b_letters) == 2 and not product.batch and len(product.a_letters) > 2
    return product.a if whole else None


Options = list[tuple[fx.Node, Term]]


def _same(node: fx.Node) -> Options:
    return [(node.args[0], Term("same", node))]  # type: ignore[list-item]


def _view(node: fx.Node) -> Options:
    return [(node.args[0], Term("view", node))]  # type: ignore[list-item]


def _scaled(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    inverse = op_name(node) in ("div", "true_divide")
    if node.kwargs:
        return []  # a rounding mode
    if isinstance(b, (int, float)) and isinstance(a, fx.Node):
        return [(a, Term("scale", node, value=1 / b if inverse else float(b)))]
    out: Options = []
    for x, y in ((a, b), (b, a)):
        if isinstance(x, fx.Node) and isinstance(y, fx.Node) and not (inverse and x is b):
            out.append((x, Term("temper", node, y, flip=inverse)))
    return out


def _turned(node: fx.Node) -> Options:
    return [(node.args[0], Term("turn", node))]  # type: ignore[list-item]


def _joined(node: fx.Node) -> Options:
    """A sink: one more column beside the logits."""
    parts: Any = node.args[0]
    dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    if dim not in (-1, node.meta["val"].dim() - 1) or len(parts) != 2:
        return []
    return [
        (x, Term("sink", node, y))
        for x, y in (parts, parts[::-1])
        if y.meta["val"].shape[-1] == 1 and x.meta["val"].shape[-1] != 1
    ]


def _added(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    if node.kwargs.get("alpha", 1) != 1:
        return []
    if not isinstance(b, fx.Node):
        return []  # softmax does not feel a shift, the other forms do
    return [(x, Term("add", node, y)) for x, y in ((a, b), (b, a)) if isinstance(x, fx.Node)]


def _subtracted(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or node.kwargs:
        return []
    return [(a, Term("maximum" if _is_maximum(b) else "add", node, b, flip=True))]


def _is_maximum(node: fx.Node) -> bool:
    return _maximum(node) is not None


def _maximum(node: fx.Node) -> fx.Node | None:
    """The reduction behind a maximum, casts and copies stepped over."""
    while getattr(node.target, "__name__", "") == "getitem" or op_name(node) in _BESIDE:
        if not isinstance(node.args[0], fx.Node):
            return None
        node = node.args[0]
    return node if op_name(node) in ("amax", "max") else None


_BESIDE = CASTS | COPIES | {"detach", "unsqueeze"}


def _row_maximum(node: fx.Node, dim: int) -> bool:
    """Whether softmax over ``dim`` (from the end) does not feel the subtracted maximum."""
    reduction = _maximum(node)
    assert reduction is not None
    if len(reduction.args) == 1:
        return True  # of everything
    dims = (
        reduction.args[1] if isinstance(reduction.args[1], (list, tuple)) else [reduction.args[1]]
    )
    rank = reduction.args[0].meta["val"].dim()  # type: ignore[union-attr]
    kept = node.meta["val"].dim() == rank and node.meta["val"].shape[dim] == 1
    return kept and [int(d) % rank for d in dims] == [dim % rank]  # type: ignore[arg-type]


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
    if bound is None or len(node.args) > 2 or not isinstance(node.args[0], fx.Node):
        return []
    return [(node.args[0], Term("clamp", node, value=bound))]


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
    **dict.fromkeys(TRANSPOSES, _turned),
    "cat": _joined,
    "maximum": _clamped,
    "max": _clamped,
    "clamp": _clamped,
    "clamp_min": _clamped,
    "tanh": _capped,
}


_ONWARD = CASTS | COPIES | VIEWS | TRANSPOSES | {"dropout"}


def _down(out: Chain) -> None:
    """From softmax to the product with the values; records dropout and other readers."""
    node = out.softmax
    while True:
        onward: list[tuple[fx.Node, Contraction | None]] = []
        for user in node.users:
            if is_metadata(user):
                continue
            mixed = mixed_map(user) is node
            product = None if mixed else contraction(user)
            steps_on = mixed or op_name(user) in _ONWARD or _drops_sink(out, user)
            if product is not None and isinstance(product.node.meta["val"], Tensor):
                onward.append((user, product))
            elif steps_on and any(_leads_to_product(u, user, 0) for u in user.users):
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


def _drops_sink(out: Chain, node: fx.Node) -> bool:
    sinks = any(t.kind == "sink" for t in out.terms)
    return sinks and op_name(node) == "slice" and int(node.args[1]) in (-1, _last(node))  # type: ignore[arg-type]


def _last(node: fx.Node) -> int:
    return int(node.meta["val"].dim()) - 1


def _leads_to_product(node: fx.Node, before: fx.Node, depth: int) -> bool:
    mixed = mixed_map(node) is before
    if not mixed and contraction(node) is not None:
        return True
    return (
        (mixed or op_name(node) in _ONWARD)
        and depth < 8
        and any(_leads_to_product(u, node, depth + 1) for u in node.users)
    )
