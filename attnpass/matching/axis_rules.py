"""One rule per operator: the axes of its result from the axes of its operands.

A rule returns None where it cannot say; the axes are then new and unknown. To add one, see
CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, fx

from attnpass.graph import nodes, number, numbers, op_name
from attnpass.matching.factors import (
    MARKS,
    PRIORITY,
    Axes,
    Axis,
    Factor,
    Provenance,
    fits,
    kind_of,
    kinds,
    other_positions,
    rank_of,
    regroup,
    size_of,
)
from attnpass.matching.products import letters_of
from attnpass.torch_internals import expression


def dimension(node: fx.Node, i: int, default: int) -> int:
    """The axis that an operator works along: its i-th argument, ``dim=``, or the default."""
    (found,) = numbers(node.args[i] if len(node.args) > i else node.kwargs.get("dim", default))
    return found


def cut_axis(source: Axes, dim: int, what: Hashable, size: Any) -> Axes:
    """``source`` with one axis cut to ``size``; the same cut of the same axis stays the same."""
    if size == 1:
        cut: Axis = ()
    else:
        cut = (Factor((source[dim], str(what)), size, kind_of(source[dim])),)
    return (*source[:dim], cut, *source[dim + 1 :])


def _view(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return regroup(t.source(node), [expression(s) for s in value.shape])


def _same(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return t.source(node)


def _permute(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    source = t.source(node)
    return tuple(source[i] for i in numbers(node.args[1]))


def _transpose(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    source = list(t.source(node))
    if len(source) < 2:
        return tuple(source)
    a, b = numbers(node.args[1:3]) if len(node.args) > 2 else (-2, -1)
    source[a], source[b] = source[b], source[a]
    return tuple(source)


def _expand(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    source = t.source(node)
    padded = ((),) * (value.dim() - len(source)) + source
    fresh = t.fresh(node, value, "repeat")
    return tuple(old or new for old, new in zip(padded, fresh, strict=True))


def _select(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    source = t.source(node)
    dim = number(node, 1) % len(source)
    return source[:dim] + source[dim + 1 :]


def _slice(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    source = t.source(node)
    dim = dimension(node, 1, 0) % len(source)
    size = expression(value.shape[dim])
    return source if size_of(source[dim]) == size else cut_axis(source, dim, node.args[2:], size)


def _cat(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    joins = nodes(node.args[0])
    sources = [t.axes[x] for x in joins]
    dim = dimension(node, 1, 0) % value.dim()
    if any(len(s) != value.dim() for s in sources):
        return None
    parts = tuple(s[dim] or _single(x, s, dim) for x, s in zip(joins, sources, strict=True))
    kind = min((k for p in parts for k in kinds(p)), key=PRIORITY.index, default="unknown")
    sizes = tuple(str(size_of(p)) for p in parts)
    joined = Factor((parts, "cat", sizes), expression(value.shape[dim]), kind, parts)
    surest = min(sources, key=lambda s: sum(rank_of(a) for a in s))
    return (*surest[:dim], (joined,), *surest[dim + 1 :])


def _single(node: fx.Node, axes: Axes, dim: int) -> Axis:
    """The only position of a tensor that is joined to others: of a cache, where all is input."""
    given = {kind for axis in axes for kind in kinds(axis)} == {"input"}
    return (Factor((node.name, dim), 1, "input"),) if given else ()


def reduced(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """Sum, mean, maximum, variance or norm over axes."""
    source = t.source(node)
    at = 2 if op_name(node) in ("norm", "linalg_vector_norm") else 1
    over = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    if over is None or isinstance(over, bool):
        return None
    dims = {d % len(source) for d in numbers(over)}
    if len(source) == value.dim():
        return tuple(() if i in dims else axis for i, axis in enumerate(source))
    return tuple(axis for i, axis in enumerate(source) if i not in dims)


def _moved(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """Rolled, flipped or gathered along one axis: other positions there, the rest as it was."""
    source, fresh = t.source(node), t.fresh(node, value, "unknown")
    where = node.args[1 if op_name(node) in ("gather", "index_select") else -1]
    dims = {d % len(source) for d in numbers(where)}
    if len(source) != value.dim():
        return None
    return tuple(
        other_positions(source[i], fresh[i])
        if i in dims
        else source[i]
        if fits(source[i], s)
        else fresh[i]
        for i, s in enumerate(value.shape)
    )


def _padded(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """Padded axes hold other positions of the same kind."""
    source, fresh = t.source(node), t.fresh(node, value, "unknown")
    return tuple(
        old if fits(old, size) else other_positions(old, new)
        for old, new, size in zip(source, fresh, value.shape, strict=True)
    )


def _real(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """The pair of a complex number is a last axis of its own."""
    return (*t.source(node), t.fresh(node, value, "feature")[-1])


def _complex(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return t.source(node)[:-1]


def _repeated(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """``repeat_interleave`` along one axis: heads of grouped queries."""
    source = t.source(node)
    if len(node.args) < 3 or len(source) != value.dim():
        return None
    dim = number(node, 2) % len(source)
    fresh = other_positions(source[dim], t.fresh(node, value, "repeat")[dim])
    return (*source[:dim], fresh, *source[dim + 1 :])


def _indexed(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """``x[:, i]``: axes that are not indexed stay; the index brings its own."""
    source, given = t.source(node), node.args[1]
    assert isinstance(given, (list, tuple))
    at = [i for i, x in enumerate(given) if x is not None]
    if len(at) != 1:
        return None
    (index,) = (t.axes.get(x, ()) for x in nodes(given))
    return (*source[: at[0]], *index, *source[at[0] + 1 :])


def _linear(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return (*t.source(node)[:-1], *t.fresh(node, value, "feature")[-1:])


def _addmm(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return (t.source(node, 1)[0], t.fresh(node, value, "feature")[1])


def _embedding(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return (*t.source(node, 1), *t.fresh(node, value, "feature")[-1:])


def _conv(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """New positions; the old ones where stride and size keep every position in its place."""
    source, space = t.source(node), t.fresh(node, value, "token")
    steps = set(numbers(node.args[3] if len(node.args) > 3 else 1))
    if len(source) != value.dim():
        return None
    kept = steps == {1} and all(
        kinds(a) == {"token"} and fits(a, s)
        for a, s in zip(source[2:], value.shape[2:], strict=True)
    )
    places = source[2:] if kept else space[2:]
    weight = node.args[1] if len(node.args) > 1 else None
    if isinstance(weight, fx.Node) and set(weight.meta["val"].shape[2:]) == {1} and steps == {1}:
        # applied to each place alone: features stay features
        places = tuple(
            old if "feature" in kinds(old) and fits(old, s) else new
            for old, new, s in zip(source[2:], places, value.shape[2:], strict=True)
        )
    if steps == {1}:  # a followed axis stays where it is
        places = tuple(
            old if kinds(old) & {*MARKS} and fits(old, s) else new
            for old, new, s in zip(source[2:], places, value.shape[2:], strict=True)
        )
    return (source[0], t.fresh(node, value, "feature")[1], *places)


def _pooled(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """Pooled or resized images: batch and channels as they were, other positions."""
    source, space = t.source(node), t.fresh(node, value, "token")
    lead = value.dim() - int(op_name(node)[-2])
    return (*source[:lead], *space[lead:]) if len(source) == value.dim() and lead > 0 else None


def _shuffled(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """Positions moved into channels or back (pixel_shuffle): both are others."""
    source, space = t.source(node), t.fresh(node, value, "token")
    if len(source) != value.dim() or value.dim() < 3:
        return None
    return (*source[:-3], t.fresh(node, value, "feature")[-3], *space[-2:])


def _halved(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    """``glu`` halves one axis."""
    source = t.source(node)
    dim = dimension(node, 1, -1) % len(source)
    return cut_axis(source, dim, "glu", expression(value.shape[dim]))


def _sdpa(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    return (*t.source(node)[:-1], t.source(node, 2)[-1])


def _matmul(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    a, b = t.source(node), t.source(node, 1)
    if len(a) < 2 or len(b) < 2:
        return None
    if kinds(b[-2]) <= {"param"} and kinds(b[-1]) <= {"param"}:
        return (*a[:-1], t.fresh(node, value, "feature")[-1])
    lead = []
    for i in range(-value.dim(), -2):
        options = [x[i] for x in (a, b) if len(x) >= -i and x[i]]
        lead.append(min(options, key=rank_of) if options else ())
    return (*lead, a[-2], b[-1])


def _baddbmm(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    a, b = t.source(node, 1), t.source(node, 2)
    return (min(a[0], b[0], key=rank_of), a[1], b[2])


def _einsum(t: Provenance, node: fx.Node, value: Tensor) -> Axes | None:
    operands = nodes(node.args[1])
    spelled = letters_of(str(node.args[0]), [len(t.axes[x]) for x in operands])
    if spelled is None:
        return None
    inputs, out = spelled
    known: dict[str, Axis] = {}
    weights = False
    for letters, x in zip(inputs, operands, strict=True):
        for letter, axis in zip(letters, t.axes[x], strict=True):
            if axis and (letter not in known or rank_of(axis) < rank_of(known[letter])):
                known[letter] = axis
        weights |= all(kinds(a) <= {"param"} for a in t.axes[x])
    fresh = t.fresh(node, value, "feature")
    return tuple(
        fresh[i] if weights and kinds(known.get(c, ())) <= {"param"} else known.get(c, ())
        for i, c in enumerate(out)
    )


_POOLS = tuple(f"{x}_pool{i}d" for x in ("max", "avg", "adaptive_avg") for i in (1, 2, 3))
_RESIZES = (
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
)

RULES: dict[str, Callable[[Provenance, fx.Node, Tensor], Axes | None]] = {
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
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv),
    **dict.fromkeys(_POOLS + _RESIZES, _pooled),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffled),
    "glu": _halved,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("roll", "flip", "gather", "index_select"), _moved),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std"), reduced),
    **dict.fromkeys(("norm", "linalg_vector_norm"), reduced),
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

SAME_SHAPE = frozenset(
    {
        *("softmax", "_softmax", "_safe_softmax", "log_softmax", "dropout", "masked_fill"),
        *("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "normalize"),
        *("native_layer_norm", "native_group_norm", "cumsum", "tril", "triu", "fill", "copy"),
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "detach", "alias"),
        *("type_as", "contiguous", "clone", "where", "slice_scatter", "select_scatter"),
        *("lift_fresh", "lift_fresh_copy", "float", "half", "bfloat16"),
        *("clamp", "softplus", "elu", "gelu", "silu", "relu", "prelu", "hardtanh", "hardswish"),
        *("rrelu", "bernoulli", "alpha_dropout", "index_put"),
    }
)
"""Operators besides the pointwise ones whose result has its operand's axes."""
