"""The operators between the logits' product and softmax: one small record for each meaning.

``read_step`` says which operands of an operator may be the logits, and what the operator then does
to them. An operator that is not in its table is not understood, and the walk ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from attnpass.graph import number, numbers, op_name, operand, operators, value
from attnpass.matching.masks import fill_of
from attnpass.matching.products import contraction


@dataclass(frozen=True)
class ScoreStep:
    """One operator that the logits pass; ``at`` is its node."""

    at: fx.Node


@dataclass(frozen=True)
class Unchanged(ScoreStep):
    """A cast or a copy."""


@dataclass(frozen=True)
class Viewed(ScoreStep):
    """The same logits, their axes split or merged."""


@dataclass(frozen=True)
class Transposed(ScoreStep):
    """The same logits, their axes in another order."""


@dataclass(frozen=True)
class MixedHeads(ScoreStep):
    """Heads combined by weights, every position for itself (talking heads)."""


@dataclass(frozen=True)
class SoftCapped(ScoreStep):
    """Logits capped by tanh."""


@dataclass(frozen=True)
class Scaled(ScoreStep):
    """Multiplied by a number."""

    factor: float


@dataclass(frozen=True)
class Tempered(ScoreStep):
    """Multiplied by a tensor, or divided by it (``inverse``)."""

    tensor: fx.Node
    inverse: bool


@dataclass(frozen=True)
class Added(ScoreStep):
    """A tensor is added, or subtracted (``negative``)."""

    tensor: fx.Node
    negative: bool = False


@dataclass(frozen=True)
class MaximumSubtracted(ScoreStep):
    """A maximum of the logits is subtracted, which softmax does not feel along its own axis."""

    maximum: fx.Node


@dataclass(frozen=True)
class Selected(ScoreStep):
    """Set to ``fill`` where ``condition`` is False, or where it is True (``flip``)."""

    condition: fx.Node
    fill: float
    flip: bool = False


@dataclass(frozen=True)
class Clamped(ScoreStep):
    """Raised to a lower bound at which exp() is 0."""

    bound: float


@dataclass(frozen=True)
class SinkJoined(ScoreStep):
    """One more column is joined that belongs to no key (an attention sink)."""


Options = list[tuple[fx.Node, ScoreStep]]
"""Operands that may be the logits, each with the step that the operator then is."""


def read_step(node: fx.Node) -> Options:
    """The operands of ``node`` that may be the logits; none where it is not understood."""
    mixed = mixed_map(node)
    if mixed is not None:
        return [(mixed, MixedHeads(node))]
    reader = _READERS.get(op_name(node))
    return reader(node) if reader else []


def mixed_map(node: fx.Node) -> fx.Node | None:
    """The map whose heads ``node`` combines by weights, every position for itself; else None.

    A linear layer or norm on a map turned so that heads are last, a 1x1 convolution, an einsum
    with a matrix.
    """
    name = op_name(node)
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if name in ("linear", "layer_norm"):
        turned = source
        while turned is not None and op_name(turned) in operators.COPIES:
            turned = operand(turned)
        heads_last = op_name(turned) in operators.TRANSPOSES
        if turned is None or not heads_last or value(turned).dim() != 4:
            return None
        return source if name == "linear" or len(numbers(node.args[1])) == 1 else None
    if name == "conv2d":
        kernel = value(operand(node, 1)).shape[2:]
        return source if all(s == 1 for s in kernel) and value(node).dim() == 4 else None
    product = contraction(node) if name == "einsum" else None
    if product is None or product.b.op not in ("placeholder", "get_attr"):
        return None
    whole = len(product.b_letters) == 2 and not product.batch and len(product.a_letters) > 2
    return product.a if whole else None


def _same(node: fx.Node) -> Options:
    return [(operand(node), Unchanged(node))]


def _view(node: fx.Node) -> Options:
    return [(operand(node), Viewed(node))]


def _turned(node: fx.Node) -> Options:
    return [(operand(node), Transposed(node))]


def _capped(node: fx.Node) -> Options:
    return [(operand(node), SoftCapped(node))]


def _scaled(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    inverse = op_name(node) in ("div", "true_divide")
    if node.kwargs:
        return []  # a rounding mode
    if isinstance(b, (int, float)) and isinstance(a, fx.Node):
        return [(a, Scaled(node, 1 / b if inverse else float(b)))]
    out: Options = []
    for x, y in ((a, b), (b, a)):
        if isinstance(x, fx.Node) and isinstance(y, fx.Node) and not (inverse and x is b):
            out.append((x, Tempered(node, y, inverse)))
    return out


def _sink(node: fx.Node) -> Options:
    parts: Any = node.args[0]
    dim = number(node, 1) if len(node.args) > 1 else 0
    if dim not in (-1, value(node).dim() - 1) or len(parts) != 2:
        return []
    return [
        (x, SinkJoined(node))
        for x, y in (parts, parts[::-1])
        if value(y).shape[-1] == 1 and value(x).shape[-1] != 1
    ]


def _added(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    if node.kwargs.get("alpha", 1) != 1:
        return []
    if not isinstance(b, fx.Node):
        return []  # softmax does not feel a shift, the other forms do
    out: Options = [(a, Added(node, b))] if isinstance(a, fx.Node) else []
    if isinstance(a, fx.Node):
        out.append((b, Added(node, a)))
    return out


def _subtracted(node: fx.Node) -> Options:
    a, b = node.args[0], node.args[1]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or node.kwargs:
        return []
    if reduction_behind(b) is not None:
        return [(a, MaximumSubtracted(node, b))]
    return [(a, Added(node, b, negative=True))]


_BESIDE = operators.CASTS | operators.COPIES | {"detach", "unsqueeze"}
"""Operators that a maximum may pass on its way to the subtraction."""


def reduction_behind(node: fx.Node) -> fx.Node | None:
    """The maximum that a node holds, casts and copies stepped over; None where it is none."""
    while getattr(node.target, "__name__", "") == "getitem" or op_name(node) in _BESIDE:
        if not isinstance(node.args[0], fx.Node):
            return None
        node = node.args[0]
    return node if op_name(node) in ("amax", "max") else None


def is_row_maximum(maximum: fx.Node, dim: int) -> bool:
    """Whether softmax over ``dim`` (from the end) does not feel the subtracted maximum."""
    reduction = reduction_behind(maximum)
    assert reduction is not None
    if len(reduction.args) == 1:
        return True  # of everything
    rank = value(operand(reduction)).dim()
    kept = value(maximum).dim() == rank and value(maximum).shape[dim] == 1
    return kept and [d % rank for d in numbers(reduction.args[1])] == [dim % rank]


def _selected(node: fx.Node) -> Options:
    if op_name(node) == "masked_fill":
        fill = fill_of(node.args[2])
        if fill is None or not isinstance(node.args[0], fx.Node):
            return []
        return [(operand(node), Selected(node, operand(node, 1), fill, flip=True))]
    _, yes, no = node.args
    if (fill := fill_of(no)) is not None and isinstance(yes, fx.Node):
        return [(yes, Selected(node, operand(node), fill))]
    if (fill := fill_of(yes)) is not None and isinstance(no, fx.Node):
        return [(no, Selected(node, operand(node), fill, flip=True))]
    return []


def _clamped(node: fx.Node) -> Options:
    bound = fill_of(node.args[1] if len(node.args) > 1 else node.kwargs.get("min"))
    if bound is None or len(node.args) > 2 or not isinstance(node.args[0], fx.Node):
        return []
    return [(operand(node), Clamped(node, bound))]


_READERS: dict[str, Callable[[fx.Node], Options]] = {
    **dict.fromkeys(operators.CASTS | operators.COPIES, _same),
    **dict.fromkeys(operators.VIEWS, _view),
    **dict.fromkeys(operators.TRANSPOSES, _turned),
    **dict.fromkeys(("mul", "div", "true_divide"), _scaled),
    **dict.fromkeys(("masked_fill", "where"), _selected),
    **dict.fromkeys(("maximum", "max", "clamp", "clamp_min"), _clamped),
    "add": _added,
    "sub": _subtracted,
    "cat": _sink,
    "tanh": _capped,
}
"""Operator -> the reader of its step."""
