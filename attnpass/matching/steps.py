"""The walk from a softmax up to the logits' product, and down to the one that reads the weights.

What stands between is collected as terms; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from attnpass.graph import CASTS, COPIES, TRANSPOSES, VIEWS, op_name
from attnpass.matching.constants import constant
from attnpass.matching.products import contraction
from attnpass.matching.recipe import FILL


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
