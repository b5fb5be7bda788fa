"""Where every axis of every tensor comes from: proven from the graph, never guessed from sizes.

An axis is a product of factors, outermost first. A linear layer or convolution makes a
*feature* factor; tokens and batches are carried along; ``view`` splits and merges factors; so
``[B*H, T, d]`` still knows that its first axis is (token, feature) and its last is a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

PRIORITY = ("token", "feature", "input", "repeat", "unknown", "param")
"""Kinds, surest first: where two operands meet in one axis, the surer one names it."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One indivisible part of an axis. Equal factors index the same things.

    Attributes:
        id: what makes two factors the same.
        size: a number or a symbolic expression.
        kind: ``token`` (positions, also batches of positions), ``feature`` (made by a projection),
            ``input`` (an axis of a graph input: unproven), ``param``, ``repeat`` or ``unknown``.
        parts: for a concatenation, the joined axes.
    """

    id: Hashable
    size: Any
    kind: str
    parts: tuple[Axis, ...] = ()
    _hash: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factor) and self.id == other.id

    def __hash__(self) -> int:
        return self._hash

    def __post_init__(self) -> None:
        # ids nest, one level per view: hash each once
        object.__setattr__(self, "_hash", hash(self.id))


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def expr(size: Any) -> Any:
    """A size as ``int`` or sympy expression, without adding a guard."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def kinds(axis: Axis) -> set[str]:
    """The kinds of an axis' factors; empty for an axis of size 1."""
    return {f.kind for f in axis}


def _ratio(a: Any, b: Any) -> Any:
    """``a / b`` where that is provably an integer, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if quotient.is_integer is not True or sympy.fraction(quotient)[1] != 1:
        return None
    return int(quotient) if quotient.is_number else quotient


def regroup(axes: Sequence[Axis], sizes: Sequence[Any]) -> Axes | None:
    """The axes of a view to ``sizes``; None where factors cannot be split to fit."""
    rest = [f for axis in axes for f in axis]
    out: list[Axis] = []
    for need in sizes:
        axis: list[Factor] = []
        while need != 1:
            if not rest:
                return None
            f = rest.pop(0)
            left = _ratio(need, f.size)
            if left is not None:
                axis.append(f)
                need = left
                continue
            inner = _ratio(f.size, need)
            if inner is None:
                return None
            axis.append(Factor((f.id, "outer", need), need, f.kind))
            rest.insert(0, Factor((f.id, "inner", need), inner, f.kind))
            need = 1
        out.append(tuple(axis))
    return None if rest else tuple(out)


class AxisTracer:
    """Walks a graph once, forward; ``axes[node]`` for every tensor node afterwards."""

    def __init__(self, graph: fx.Graph, parameters: set[fx.Node]) -> None:
        self.axes: dict[fx.Node, Axes] = {}
        self.many: dict[fx.Node, list[Axes]] = {}
        for node in graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, Tensor):
                kind = "param" if node in parameters else "input"
                self.axes[node] = self._new(node, value, kind)
            elif node.op == "get_attr" and isinstance(value, Tensor):
                self.axes[node] = self._new(node, value, "param")
            elif node.op == "call_function":
                self._call(node, value)

    def _new(self, node: fx.Node, value: Tensor, kind: str) -> Axes:
        sizes = [expr(s) for s in value.shape]
        return tuple(
            () if s == 1 else (Factor((node.name, i), s, kind),) for i, s in enumerate(sizes)
        )

    def _call(self, node: fx.Node, value: Any) -> None:
        if node.target.__name__ == "getitem":  # type: ignore[union-attr]
            parts = self.many.get(node.args[0], [])  # type: ignore[arg-type]
            if parts and isinstance(value, Tensor) and len(parts[0]) == value.dim():
                self.axes[node] = parts[int(node.args[1])]  # type: ignore[arg-type]
                return
        name = op_name(node)
        if isinstance(value, (list, tuple)):
            if name in _SPLITS and isinstance(node.args[0], fx.Node):
                self.many[node] = [self._split(node, v, i) for i, v in enumerate(value)]
            elif name in ("max", "min"):
                self.many[node] = [_reduced(self, node, v) or () for v in value]
            return
        if not isinstance(value, Tensor):
            return
        rule = _RULES.get(name)
        found = rule(self, node, value) if rule else None
        if found is None or len(found) != value.dim():
            plain = name in _SAME_SHAPE or torch.Tag.pointwise in getattr(node.target, "tags", ())
            found = self._elementwise(node, value) if plain else self._new(node, value, "unknown")
        self.axes[node] = found

    def _source(self, node: fx.Node, i: int = 0) -> Axes:
        return self.axes[node.args[i]]  # type: ignore[index]

    def _elementwise(self, node: fx.Node, value: Tensor) -> Axes:
        """Axes of the operands, aligned at the right, the surer kind first, else fresh."""
        out: list[Axis] = []
        for i, new in enumerate(self._new(node, value, "unknown")):
            aligned = [
                axes[len(axes) - value.dim() + i]
                for axes in (self.axes.get(x, ()) for x in node.all_input_nodes)
                if len(axes) - value.dim() + i >= 0
            ]
            out.append(
                min((a for a in aligned if a and _fits(a, value.shape[i])), key=_rank, default=new)
            )
        return tuple(out)

    def _split(self, node: fx.Node, value: Tensor, i: int) -> Axes:
        source = self._source(node)
        if op_name(node) == "unbind":
            dim = _dim(node, 1, 0) % len(source)
            return source[:dim] + source[dim + 1 :]
        dim = _dim(node, 2, 0) % len(source)
        return _cut(source, dim, ("part", i, node.args[1]), expr(value.shape[dim]))


def op_name(node: Any) -> str:
    """The ATen name without namespace and overload, ``""`` for what is not an ATen operator."""
    schema = getattr(getattr(node, "target", None), "_schema", None)
    return str(schema.name.split("::")[1]) if schema is not None else ""


def _size(axis: Axis) -> Any:
    sizes = [f.size for f in axis]
    return math.prod(sizes) if all(isinstance(s, int) for s in sizes) else sympy.prod(sizes)


def _rank(axis: Axis) -> int:
    return min((PRIORITY.index(k) for k in kinds(axis)), default=len(PRIORITY))


def surer(a: Axis, b: Axis) -> Axis:
    """The one of two names of an axis that is of the surer kind."""
    return b if b and (not a or _rank(b) < _rank(a)) else a


def _dim(node: fx.Node, i: int, default: int) -> int:
    value = node.args[i] if len(node.args) > i else node.kwargs.get("dim", default)
    return int(value)  # type: ignore[arg-type]


def _cut(source: Axes, dim: int, what: Hashable, size: Any) -> Axes:
    """``source`` with one axis cut to ``size``; the same cut of the same axis stays the same."""
    if size == 1:
        cut: Axis = ()
    else:
        kind = min(kinds(source[dim]) or {"unknown"}, key=PRIORITY.index)
        cut = (Factor((source[dim], str(what)), size, kind),)
    return (*source[:dim], cut, *source[dim + 1 :])


def _view(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return regroup(t._source(node), [expr(s) for s in value.shape])


def _same(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return t._source(node)


def _permute(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    source = t._source(node)
    return tuple(source[int(i)] for i in node.args[1])  # type: ignore[union-attr, arg-type]


def _transpose(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    source = list(t._source(node))
    if len(source) < 2:
        return tuple(source)
    pair = node.args[1:3] if len(node.args) > 2 else (-2, -1)
    a, b = (int(i) for i in pair)  # type: ignore[arg-type]
    source[a], source[b] = source[b], source[a]
    return tuple(source)


def _expand(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    source = t._source(node)
    padded = ((),) * (value.dim() - len(source)) + source
    fresh = t._new(node, value, "repeat")
    return tuple(old or new for old, new in zip(padded, fresh, strict=True))


def _select(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    source = t._source(node)
    dim = int(node.args[1]) % len(source)  # type: ignore[arg-type]
    return source[:dim] + source[dim + 1 :]


def _slice(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    source = t._source(node)
    dim = _dim(node, 1, 0) % len(source)
    size = expr(value.shape[dim])
    return source if _size(source[dim]) == size else _cut(source, dim, node.args[2:], size)


def _cat(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    sources = [t.axes[x] for x in node.args[0]]  # type: ignore[union-attr, index]
    dim = _dim(node, 1, 0) % value.dim()
    if any(len(s) != value.dim() for s in sources):
        return None
    parts = tuple(s[dim] for s in sources)
    kind = min((k for p in parts for k in kinds(p)), key=PRIORITY.index, default="unknown")
    sizes = tuple(str(_size(p)) for p in parts)
    joined = Factor(("cat", parts, sizes), expr(value.shape[dim]), kind, parts)
    surest = min(sources, key=lambda s: sum(_rank(a) for a in s))
    return (*surest[:dim], (joined,), *surest[dim + 1 :])


def _reduced(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """Sum, mean or maximum over axes."""
    source = t._source(node)
    over: Any = node.args[1] if len(node.args) > 1 else None
    if over is None:
        return None
    dims = {int(d) % len(source) for d in (over if isinstance(over, (list, tuple)) else [over])}
    if len(source) == value.dim():
        return tuple(() if i in dims else axis for i, axis in enumerate(source))
    return tuple(axis for i, axis in enumerate(source) if i not in dims)


def _moved(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """Rolled, flipped or gathered along one axis: other positions there, the rest as it was."""
    source, fresh = t._source(node), t._new(node, value, "unknown")
    where: Any = node.args[1 if op_name(node) in ("gather", "index_select") else -1]
    dims = {int(d) % len(source) for d in (where if isinstance(where, (list, tuple)) else [where])}
    if len(source) != value.dim():
        return None
    return tuple(
        _other(source[i], fresh[i])
        if i in dims
        else source[i]
        if _fits(source[i], s)
        else fresh[i]
        for i, s in enumerate(value.shape)
    )


def _other(old: Axis, new: Axis) -> Axis:
    """Positions of the same kind as ``old``, but not the same ones."""
    if not old or not new:
        return new
    return (Factor(new[0].id, new[0].size, min(kinds(old), key=PRIORITY.index)),)


def _fits(axis: Axis, size: Any) -> bool:
    return bool(_size(axis) == expr(size))


def _padded(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """Padded axes hold other positions of the same kind."""
    source, fresh = t._source(node), t._new(node, value, "unknown")
    return tuple(
        old if _fits(old, size) else _other(old, new)
        for old, new, size in zip(source, fresh, value.shape, strict=True)
    )


def _real(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """The pair of a complex number is a last axis of its own."""
    return (*t._source(node), t._new(node, value, "feature")[-1])


def _complex(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return t._source(node)[:-1]


def _repeated(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """``repeat_interleave`` along one axis: heads of grouped queries."""
    source = t._source(node)
    if len(node.args) < 3 or len(source) != value.dim():
        return None
    dim = int(node.args[2]) % len(source)  # type: ignore[arg-type]
    fresh = _other(source[dim], t._new(node, value, "repeat")[dim])
    return (*source[:dim], fresh, *source[dim + 1 :])


def _indexed(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """``x[:, i]``: axes that are not indexed stay; the index brings its own."""
    source, given = t._source(node), list(node.args[1])  # type: ignore[arg-type]
    at = [i for i, x in enumerate(given) if x is not None]
    if len(at) != 1:
        return None
    index = t.axes.get(given[at[0]], ())
    return (*source[: at[0]], *index, *source[at[0] + 1 :])


def _linear(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return (*t._source(node)[:-1], *t._new(node, value, "feature")[-1:])


def _addmm(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return (t._source(node, 1)[0], t._new(node, value, "feature")[1])


def _embedding(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return (*t._source(node, 1), *t._new(node, value, "feature")[-1:])


def _conv(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    """New positions; the old ones where stride and size keep every position in its place."""
    source, space = t._source(node), t._new(node, value, "token")
    stride: Any = node.args[3] if len(node.args) > 3 else 1
    steps = set(stride) if isinstance(stride, (list, tuple)) else {stride}
    if len(source) != value.dim():
        return None
    kept = steps == {1} and all(
        kinds(a) == {"token"} and _fits(a, s)
        for a, s in zip(source[2:], value.shape[2:], strict=True)
    )
    places = source[2:] if kept else space[2:]
    return (source[0], t._new(node, value, "feature")[1], *places)


def _sdpa(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    return (*t._source(node)[:-1], t._source(node, 2)[-1])


def _matmul(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    a, b = t._source(node), t._source(node, 1)
    if len(a) < 2 or len(b) < 2:
        return None
    if kinds(b[-2]) <= {"param"} and kinds(b[-1]) <= {"param"}:
        return (*a[:-1], t._new(node, value, "feature")[-1])
    lead = []
    for i in range(-value.dim(), -2):
        options = [x[i] for x in (a, b) if len(x) >= -i and x[i]]
        lead.append(min(options, key=_rank) if options else ())
    return (*lead, a[-2], b[-1])


def _baddbmm(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    a, b = t._source(node, 1), t._source(node, 2)
    return (min(a[0], b[0], key=_rank), a[1], b[2])


def _einsum(t: AxisTracer, node: fx.Node, value: Tensor) -> Axes | None:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if "." in equation or "->" not in equation:
        return None
    known: dict[str, Axis] = {}
    weights = False
    for letters, x in zip(equation.split("->")[0].split(","), operands, strict=True):  # type: ignore[arg-type]
        for letter, axis in zip(letters, t.axes[x], strict=True):  # type: ignore[index]
            if axis and (letter not in known or _rank(axis) < _rank(known[letter])):
                known[letter] = axis
        weights |= all(kinds(a) <= {"param"} for a in t.axes[x])  # type: ignore[index]
    fresh = t._new(node, value, "feature")
    letters = equation.split("->")[1]
    return tuple(
        fresh[i] if weights and kinds(known.get(c, ())) <= {"param"} else known.get(c, ())
        for i, c in enumerate(letters)
    )


_SPLITS = (
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
)
_RULES: dict[str, Callable[[AxisTracer, fx.Node, Tensor], Axes | None]] = {
    **dict.fromkeys(
        (
            "view",
            "reshape",
            "_unsafe_view",
            "flatten",
            "unflatten",
            "unsqueeze",
            "squeeze",
            "view_copy",
            "view_as",
            "reshape_as",
            "_reshape_alias",
        ),
        _view,
    ),
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims", "mT", "numpy_T"), _transpose),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _conv),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("roll", "flip", "gather", "index_select"), _moved),
    **dict.fromkeys(("sum", "mean", "amax", "amin"), _reduced),
    "index": _indexed,
    "repeat_interleave": _repeated,
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    "view_as_real": _real,
    "view_as_complex": _complex,
    **dict.fromkeys(("to", "_to_copy", "type_as", "clone", "contiguous", "dropout"), _same),
    "permute": _permute,
    "select": _select,
    "slice": _slice,
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _sdpa,
    "einsum": _einsum,
    "baddbmm": _baddbmm,
}
_SAME_SHAPE = frozenset(
    {
        *("softmax", "_softmax", "_safe_softmax", "log_softmax", "dropout", "masked_fill"),
        *("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "normalize"),
        *("native_layer_norm", "native_group_norm", "cumsum", "tril", "triu", "fill", "copy"),
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "detach", "alias"),
        *("type_as", "contiguous", "clone", "where", "slice_scatter", "select_scatter"),
        *("lift_fresh", "lift_fresh_copy", "float", "half", "bfloat16", "linalg_vector_norm"),
        *("clamp", "softplus", "elu", "gelu", "silu", "relu", "prelu", "hardtanh", "hardswish"),
        *("norm", "var", "std", "glu", "rrelu", "bernoulli", "alpha_dropout", "index_put"),
    }
)
"""Operators besides the pointwise ones whose result has its operand's axes."""
