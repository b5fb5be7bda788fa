"""FlexAttention is read as scaled dot product attention where its two functions can be.

The call stays in the graph, behind the arguments of ``scaled_dot_product_attention``: it is
matched and rewritten as that, and unfolded to the call again where it is not rewritten.

Soundness: ``mask_mod`` says which positions are kept; ``score_mod`` adds to the logits or masks
them. Both are run once on all positions instead of at each. Conditions:

1. Their operators are pointwise (``POINTWISE``) or read one element of a captured tensor, which
   has no axes otherwise; of a captured tensor the shape may be read (``SIZES``).
2. The result of ``score_mod`` is the score, plus or minus what does not depend on it, or -inf
   where a condition that does not depend on it says so.
3. Nothing but the attention's result is read (no log-sum-exp).
4. Every value has the axes of all positions, also where it has size 1 along each: a dtype that
   comes out of several is then that of single elements.
5. What is added is added in the dtype of the scores: float32, or float64 for float64 queries.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph.nodes import operand, twin
from attnpass.torch_internals import (
    disable_proxy_modes_tracing,
    proxy_mode,
    pytree,
    track_tensor_tree,
)

POINTWISE: frozenset[Any] = frozenset(
    getattr(operator, name)
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pos", "abs", "pow"),
        *("lt", "le", "eq", "ne", "ge", "gt", "and_", "or_", "xor", "invert"),
    )
) | {torch.where, torch.abs, torch.minimum, torch.maximum, torch.logical_and, torch.logical_or}
POINTWISE |= {torch.logical_not, torch.clamp, torch.full_like}
POINTWISE |= {
    getattr(torch, name)
    for name in (
        *("add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "pow", "neg"),
        *("exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square"),
        *("tanh", "sigmoid", "relu", "sign", "floor", "ceil"),
        *("lt", "le", "eq", "ne", "ge", "gt"),
    )
}
"""Functions that give the same for many positions at once as for one."""

METHODS = frozenset(
    (
        *("abs", "clamp", "neg", "float", "int", "long", "bool", "to", "double", "half"),
        *("add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "pow"),
        *("exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square"),
        *("tanh", "sigmoid", "relu", "sign", "floor", "ceil"),
        *("lt", "le", "eq", "ne", "ge", "gt", "logical_and", "logical_or", "logical_not"),
        *("new_ones", "new_zeros"),
    )
)
"""The same among the methods of tensors; new tensors have the size of one element."""


SIZES = frozenset({"size", "dim", "numel"})
"""Methods that read the shape of a captured tensor, which is the same for every element."""


class Unreadable(Exception):
    """Why a function cannot be read."""


@dataclass
class _Scored:
    """``score_mod``: what is added to the score, and where it is kept; None for nothing."""

    bias: Any = None
    keep: Any = None


def is_flex(node: fx.Node) -> bool:
    """Whether a node of Dynamo's graph calls FlexAttention."""
    return getattr(node.target, "name", lambda: "")() == "flex_attention"


class Flex:
    """A call of FlexAttention with the arguments of ``scaled_dot_product_attention``.

    Args:
        piece: the call as a graph of its own, with all that it reads as inputs.
        result: the fake value of the attention's result.

    Raises:
        Unreadable: a condition does not hold.
    """

    __name__ = "flex_attention"
    _schema = torch.ops.aten.scaled_dot_product_attention.default._schema

    def __init__(self, piece: fx.GraphModule, result: Tensor) -> None:
        self.piece, self.result = piece, result
        (self.node,) = (n for n in piece.graph.nodes if is_flex(n))
        self.inputs = list(piece.graph.find_nodes(op="placeholder"))
        self.score_mod, self.mask_mod = (
            getattr(piece, str(n.target)).graph
            for n in (self.node.args[3], self.node.args[4][-1])  # type: ignore[index,union-attr]
        )
        _check(self.score_mod, scored=True)
        _check(self.mask_mod, scored=False)

    def __call__(self, *_: Any, held: Sequence[Any], **__: Any) -> Any:
        """The attention's result, by the call itself."""
        return self.piece(*held)[0][0]

    def traced(self, *given: Any) -> Any:
        """What the call returns, as one node in the graph that ``make_fx`` is recording."""
        value = dict(zip(self.inputs, given, strict=True))
        q, k, v = (value[n] for n in self.node.args[:3])
        scale, more = self.node.args[5], [*self.node.args[7:], (), ()][:2]
        scale = value.get(scale, scale)  # type: ignore[call-overload]
        buffers = [tuple(value.get(x, x) for x in xs) for xs in more]  # type: ignore[call-overload]
        sizes = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        places = [
            torch.arange(n, device=q.device).view([-1 if i == at else 1 for i in range(4)])
            for at, n in enumerate(sizes)
        ]
        keep = _run(self.mask_mod, [*places, *buffers[1]])
        wide = torch.promote_types(q.dtype, torch.float32)
        scored = _scored(self.score_mod, [None, *places, *buffers[0]], wide)
        if isinstance(scored.keep, Tensor):
            keep = keep & scored.keep
        mask = keep.expand(sizes) if isinstance(keep, Tensor) else None
        if isinstance(scored.bias, Tensor):
            bias = scored.bias.expand(sizes)
            mask = bias if mask is None else torch.where(mask, bias, -math.inf)
        gqa = q.shape[1] != k.shape[1]
        kwargs = {"scale": scale, "enable_gqa": gqa, "held": list(given)}
        return ((self.recorded((q, k, v, mask), kwargs), None, None),)

    def recorded(self, args: Any, kwargs: Any) -> Any:
        """The same node in another recording, from its own arguments."""
        mode: Any = proxy_mode()
        proxies = pytree.tree_map(mode.tracer.unwrap_proxy, (args, kwargs))
        out = mode.tracer.create_proxy("call_function", self, *proxies)
        with disable_proxy_modes_tracing():
            made = twin(self.result)
        return track_tensor_tree(made, out, mode.tracer)


def _check(graph: fx.Graph, *, scored: bool) -> None:
    """Conditions 1 and 2 of one function's graph, whose first input may be the score."""
    score = next(iter(graph.nodes)) if scored else None
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            _check_captured(node)
        elif node.op == "output":
            continue
        elif node.target is operator.getitem:
            base, index = _element(node)
            left = _rank(base) - len(index)
            if left < 0 or left and not all(u.target is operator.getitem for u in node.users):
                raise Unreadable(f"{node.name} in its functions reads more than one element")
        elif node.op == "call_method" and node.target in SIZES:
            if operand(node).op not in ("placeholder", "get_attr"):
                raise Unreadable(f"{node.name} in its functions is not read")
        elif not (
            node.target in POINTWISE if node.op == "call_function" else node.target in METHODS
        ):
            raise Unreadable(f"{node.name} in its functions is not read")
    if score is not None:
        _walk(graph.output_node().args[0], score)


def _rank(captured: fx.Node) -> int:
    """How many axes a captured tensor has; 0 of a number."""
    found = captured.meta.get("example_value")
    return found.dim() if isinstance(found, Tensor) else 0


def _check_captured(node: fx.Node) -> None:
    """Refuse a captured tensor with axes that is used as a whole."""
    read = (operator.getitem, *SIZES)
    if _rank(node) and not all(user.target in read for user in node.users):
        raise Unreadable(f"{node.name} in its functions is used as a whole")


def _element(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]]:
    """The captured tensor that nested indexing reads, and all indices.

    Raises:
        Unreadable: something else is indexed, or by slices.
    """
    base, index = node.args
    own = index if isinstance(index, tuple) else (index,)
    if not isinstance(base, fx.Node) or not all(isinstance(x, (fx.Node, int)) for x in own):
        raise Unreadable(f"{node.name} in its functions is not read")
    if base.op in ("placeholder", "get_attr"):
        return base, own
    if base.target is not operator.getitem:
        raise Unreadable(f"{node.name} in its functions is not read")
    root, before = _element(base)
    return root, (*before, *own)


def _depends(node: Any, score: fx.Node) -> bool:
    """Whether a value is computed from the score."""
    if not isinstance(node, fx.Node):
        return False
    return node is score or any(_depends(x, score) for x in node.all_input_nodes)


_SUMS = (operator.add, operator.sub, torch.add, torch.sub, "add", "sub")


def _walk(node: Any, score: fx.Node) -> list[tuple[str, Any]]:
    """The steps from the score to a value: ``add``, ``sub``, ``keep`` or ``drop`` of a node.

    Raises:
        Unreadable: condition 2.
    """
    if node is score:
        return []
    args = node.args if isinstance(node, fx.Node) else ()
    target = getattr(node, "target", None)
    name = str(getattr(target, "__name__", target))
    if target in _SUMS and not node.kwargs:
        for at, other in ((0, 1), (1, 0)):
            if _depends(args[at], score) and not _depends(args[other], score):
                if name == "sub" and at == 1:
                    break
                return [*_walk(args[at], score), (name, args[other])]
    if target is torch.where and len(args) == 3 and not _depends(args[0], score):
        for at, other, kind in ((1, 2, "keep"), (2, 1, "drop")):
            if args[other] == -math.inf and _depends(args[at], score):
                return [*_walk(args[at], score), (kind, args[0])]
    raise Unreadable("its score_mod does more than add to the score or mask it")


def _run(graph: fx.Graph, given: Sequence[Any], at: Any = None) -> Any:
    """A function's result for all positions, or the value of one of its nodes."""
    known: dict[fx.Node, Any] = {}

    def of(x: Any) -> Any:
        return fx.map_arg(x, lambda n: known[n])

    inputs = iter(given)
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = _spread(next(inputs))
        elif node.op == "get_attr":
            known[node] = _spread(getattr(graph.owning_module, str(node.target)))
        elif node.op == "output":
            return of(node.args[0])
        elif node.target is operator.getitem:
            base, index = _element(node)
            full = len(index) == known[base].dim()
            known[node] = known[base][of(index)] if full else known[base]
        elif not any(known[x] is None for x in node.all_input_nodes):
            call: Any = node.target
            if node.op == "call_method":
                call = operator.methodcaller(call, *of(node.args[1:]), **of(node.kwargs))
                known[node] = call(of(node.args[0]))
            else:
                known[node] = call(*of(node.args), **of(node.kwargs))
        else:
            known[node] = None  # it depends on the score
        known[node] = _spread(known[node])
        if node is at:
            return known[node]
    raise AssertionError("a graph without an output")


def _spread(x: Any) -> Any:
    """A tensor of one element with the axes of all positions (condition 4)."""
    return x.reshape(1, 1, 1, 1) if isinstance(x, Tensor) and x.dim() == 0 else x


def _scored(graph: fx.Graph, given: Sequence[Any], dtype: torch.dtype) -> _Scored:
    """What ``score_mod`` adds to every score, in a dtype, and where it keeps it."""
    score = next(iter(graph.nodes))
    out = _Scored()
    for kind, x in _walk(graph.output_node().args[0], score):
        found = _run(graph, given, x) if isinstance(x, fx.Node) else x
        if kind in ("add", "sub"):
            more = torch.as_tensor(found, device=given[1].device).to(dtype)
            more = more if kind == "add" else -more
            out.bias = more if out.bias is None else out.bias + more
        else:
            keep = found if kind == "keep" else ~found
            out.keep = keep if out.keep is None else out.keep & keep
    return out
