"""Parts of a graph that cannot be re-traced are carried through as they are.

A functorch region, a higher-order operator or a call that reads or makes a tensor
subclass (quantised or sharded weights) is folded into one call before tracing, stays one node
while the graph is matched and rewritten, and is unfolded again for the inner compiler.
Checkpointed and nested regions are plain calls and are opened instead; a region under ``vmap`` is
opened where the operators that it runs can be known (``batched``).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

from attnpass.graph.batched import batched, is_batched
from attnpass.graph.flex import Flex, Unreadable, is_flex
from attnpass.graph.nodes import twin
from attnpass.torch_internals import (
    HigherOrderOperator,
    disable_proxy_modes_tracing,
    is_wrapper_subclass,
    next_checkpoint_id,
    proxy_mode,
    pytree,
    track_tensor_tree,
)

SUBCLASS = "a tensor subclass"
"""The kind of a piece that reads or makes tensors that wrap others."""

_number = itertools.count()

_CALLS = ("call_function", "call_method", "call_module")

_IN_PLACE = {
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "setitem"),
    *("iand", "ior", "ixor", "ilshift", "irshift", "delitem"),
}
_IN_PLACE |= {f"__{name}__" for name in _IN_PLACE}


class Opaque:
    """A piece of Dynamo's graph as a callable, with the fake values of what it returns.

    ``why``: what kept it from being read as attention.
    """

    def __init__(self, piece: fx.GraphModule, values: tuple[Any, ...], why: str = "") -> None:
        self.piece, self.why = piece, why
        self.values = values
        self.__name__ = f"opaque_{next(_number)}"

    def __call__(self, *args: Any) -> Any:
        """Run the piece; always a tuple."""
        return self.piece(*args)

    def traced(self, *args: Any) -> Any:
        """One node in the graph that ``make_fx`` is recording; its fake values.

        A region under vmap becomes the operators that it runs, where these can be known.
        """
        opened = batched(self.piece, args) if is_batched(self.piece) else None
        if opened is not None:
            return fx.Interpreter(opened).run(*args)
        mode: Any = proxy_mode()
        proxies = pytree.tree_map(mode.tracer.unwrap_proxy, args)
        out = mode.tracer.create_proxy("call_function", self, proxies, {})
        with disable_proxy_modes_tracing():
            values = pytree.tree_map_only(Tensor, twin, self.values)
        return track_tensor_tree(values, out, mode.tracer)

    def nodes(self) -> Iterable[fx.Node]:
        """Every node inside, also of bodies."""
        for module in self.piece.modules():
            if isinstance(module, fx.GraphModule):
                yield from module.graph.nodes

    @property
    def kind(self) -> str:
        """What kept it from being read: ``vmap``, ``scan``, ``a tensor subclass``."""
        for node in self.piece.graph.nodes:
            if isinstance(node.target, HigherOrderOperator):
                return str(node.target.name()).removesuffix("_impl")
            name = getattr(node.target, "__name__", "")
            if name.endswith("_increment_nesting"):
                return str(name).strip("_").partition("_")[0]
        return SUBCLASS

    @property
    def projected(self) -> int | None:
        """The argument to which a linear layer inside is applied; None where there is none."""
        for node in self.nodes():
            if getattr(node.target, "__name__", node.target) != "linear":
                continue
            given: Any = node
            while given.op in _CALLS and given.all_input_nodes:
                given = given.all_input_nodes[0]
            inputs = list(node.graph.find_nodes(op="placeholder"))
            return inputs.index(given) if given in inputs else None
        return None

    @property
    def mutates(self) -> bool:
        """Whether something inside writes to a tensor that it was given."""
        calls = (node for node in self.nodes() if node.op in _CALLS)
        return any(_writes(node) and not _made_inside(node) for node in calls)


def opened(node: Any) -> bool:
    """Whether a higher-order operator is a plain call of its body."""
    name = getattr(node.target, "name", lambda: "")()
    if name == "tag_activation_checkpoint":
        body = node.graph.owning_module.get_submodule(node.args[0].target)
        return "_checkpoint_context_fn" not in body.meta
    return bool(name == "invoke_subgraph")


def enter(target: Any, args: tuple[Any, ...]) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """The body of an opened operator and the body's arguments; tagged to be recomputed."""
    body = args[0]
    if target.name() == "invoke_subgraph":
        return body, args[2:]
    number = next_checkpoint_id()
    for node in body.graph.nodes:
        if node.op in _CALLS:
            node.meta["ac_graph_id"] = number
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
    return body, args[1:]


def fold(gm: fx.GraphModule) -> fx.GraphModule:
    """``gm`` with every piece that cannot be re-traced as one call; itself where none."""
    pieces = list(_pieces(gm.graph))
    if not pieces:
        return gm
    copied: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, copied))
    out = fx.GraphModule(gm, graph)
    for piece in pieces:
        _fold(out, [copied[n] for n in piece])
    graph.lint()
    out.recompile()
    return out


def _pieces(graph: fx.Graph) -> Iterable[list[fx.Node]]:
    inside: list[fx.Node] = []
    depth = 0
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        depth += name.endswith("_increment_nesting")
        if depth:
            inside.append(node)
        elif isinstance(node.target, HigherOrderOperator) and not opened(node):
            yield [node]
        if depth and name.endswith("_decrement_nesting"):
            depth -= 1
            if not depth:
                yield inside
                inside = []
    yield from _of_subclasses(graph)


def _of_subclasses(graph: fx.Graph) -> list[list[fx.Node]]:
    """Calls on tensor subclasses, those joined between which one passes, in program order."""
    pieces: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op not in _CALLS or isinstance(node.target, HigherOrderOperator):
            continue
        wrapped = [x for x in node.all_input_nodes if _is_subclass(x)]
        if not wrapped and not _is_subclass(node):
            continue
        piece = [node]
        for other in {id(pieces[x]): pieces[x] for x in wrapped if x in pieces}.values():
            piece = [*other, *piece]
        pieces |= dict.fromkeys(piece, piece)
    found = {id(piece): sorted(piece) for piece in pieces.values()}.values()
    return [piece for piece in found if not _read_inside(piece)]


def _read_inside(piece: list[fx.Node]) -> bool:
    """Whether a piece cannot become one call.

    A node between its own reads one of them, writes, or switches gradients or autocast.
    """
    own, node = set(piece), piece[0]
    while node is not piece[-1]:
        node = node.next
        if node not in own and node.op in _CALLS and (_switches(node) or _writes(node)):
            return True
    return any(u not in own and u < piece[-1] for n in piece for u in n.users)


def _writes(node: fx.Node) -> bool:
    """Whether a call of Dynamo's graph writes to a tensor, by its name."""
    name = getattr(node.target, "__name__", str(node.target))
    in_place = name in _IN_PLACE or (name.endswith("_") and name[-2:] != "__")
    return "mutation" in name or in_place or "out" in node.kwargs


_MAKES = ("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full")


def _made_inside(node: fx.Node) -> bool:
    """Whether a call writes to a tensor that the same graph made."""
    given: Any = node.args[0] if node.args else None
    while isinstance(given, fx.Node) and given.op in _CALLS:
        if getattr(given.target, "__name__", str(given.target)) in _MAKES:
            return True
        given = given.args[0] if given.args else None
    return False


def _switches(node: fx.Node) -> bool:
    """Whether a call switches gradients, autocast or another state of torch."""
    name = getattr(node.target, "__name__", str(node.target))
    return any(part in name for part in ("autocast", "grad_enabled", "inference_mode", "nesting"))


def _is_subclass(node: fx.Node) -> bool:
    """Whether a node holds a tensor that wraps others, as quantised and sharded weights do."""
    return is_wrapper_subclass(node.meta.get("example_value"))


def _carried(
    piece: list[fx.Node], inner: fx.GraphModule, values: tuple[Any, ...]
) -> Opaque | Flex:
    """The target of the call that stands for a piece."""
    node = piece[0]
    if len(piece) == 1 and is_flex(node):
        results = [u.args[1] for u in node.users if u.target is operator.getitem]
        if set(results) != {0} or len(results) != len(node.users):
            return Opaque(inner, values, "its log-sum-exp is read")
        try:
            return Flex(inner, values[0][0])
        except Unreadable as error:
            return Opaque(inner, values, str(error))
    return Opaque(inner, values)


def _fold(gm: fx.GraphModule, piece: list[fx.Node]) -> None:
    graph, own = gm.graph, set(piece)
    given = dict.fromkeys(x for n in piece for x in n.all_input_nodes if x not in own)
    inputs = [n for n in given if n.op != "get_attr"]
    returned = [n for n in piece if any(u not in own for u in n.users)]
    inner = fx.Graph()
    moved: dict[fx.Node, fx.Node] = {n: inner.placeholder(n.name) for n in inputs}
    for node in [*(n for n in given if n.op == "get_attr"), *piece]:
        moved[node] = inner.node_copy(node, moved.__getitem__)
    inner.output(tuple(moved[n] for n in returned))
    values = tuple(n.meta.get("example_value") for n in returned)
    opaque = _carried(piece, fx.GraphModule(gm, inner), values)
    with graph.inserting_after(piece[-1]):
        call = graph.call_function(opaque, tuple(inputs))
    call.meta = {k: v for k, v in piece[-1].meta.items() if k != "example_value"}
    for i, node in reversed(list(enumerate(returned))):
        with graph.inserting_after(call):
            part = graph.call_function(operator.getitem, (call, i))
        part.meta = dict(node.meta)
        node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in own)
    for node in reversed(piece):
        graph.erase_node(node)


def unfold(gm: fx.GraphModule) -> fx.GraphModule:
    """Every folded piece spelled out again, in place."""
    for node in list(gm.graph.nodes):
        opaque: Any = node.target
        if not isinstance(opaque, (Opaque, Flex)):
            continue
        moved: dict[fx.Node, Any] = {}
        inner = opaque.piece.graph
        given: Any = node.kwargs.get("held", node.args)
        moved.update(zip(inner.find_nodes(op="placeholder"), given, strict=True))
        with gm.graph.inserting_before(node):
            for own in inner.nodes:
                if own.op not in ("placeholder", "output"):
                    moved[own] = gm.graph.node_copy(own, moved.__getitem__)
                if own.op == "get_attr":
                    body, target = (
                        getattr(opaque.piece, own.target),
                        f"{own.target}_{next(_number)}",
                    )
                    setattr(gm, target, body)
                    moved[own].target = target
        results: Any = inner.output_node().args[0]
        if isinstance(opaque, Flex):
            with gm.graph.inserting_before(node):
                out = gm.graph.call_function(operator.getitem, (moved[results[0]], 0))
            out.meta = dict(node.meta)
            node.replace_all_uses_with(out)
        for user in list(node.users):
            user.replace_all_uses_with(moved[results[user.args[1]]])
            gm.graph.erase_node(user)
        gm.graph.erase_node(node)
    gm.graph.lint()
    gm.recompile()
    return gm
