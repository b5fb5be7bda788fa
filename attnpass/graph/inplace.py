"""In-place writes become functional: the value of a node no longer depends on when it is read.

A write to a fresh tensor, also through views of it, becomes its functional twin scattered back to
the base; every node that reads the tensor later reads the new value through the same views.

Soundness: a replaced write leaves every later reader, and every gradient, as it was. Conditions; a
write that breaks one stays, and sites that it touches are declined:

1. The base of the written tensor is made in this graph, and is no view of something else.
2. Each view between the base and the written tensor can be inverted.
3. No view of the base changes its own shape in place.
4. Gradients are recorded at the write as they were where the base was made.
5. Each view that is read after the write can be taken again from the new value.
6. A functional operator gives the written value, of the same shape and dtype.
7. The new base has the strides of the old one: a later reshape copies where it copied.

Not covered: tensors whose storage is hidden (inside vmap), which count as views of all operands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from attnpass.graph.aliasing import shares, writes
from attnpass.graph.nodes import op_name, operand, permuted
from attnpass.graph.nodes import value as value_of
from attnpass.graph.operators import VIEWS
from attnpass.torch_internals import GRAD_MODE, OpOverload, fake_mode_of, overload_name

aten = torch.ops.aten


def functionalize(graph: fx.Graph) -> None:
    """Turn in-place writes to fresh tensors, also through views of them, into functional twins.

    Writes to inputs and parameters, and through views that cannot be inverted, stay as they are;
    ``match`` declines the sites that they touch.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    modes = grad_modes(graph)
    views = {node for node in graph.nodes if any(shares(node, x) for x in node.all_input_nodes)}
    for node in list(graph.nodes):
        if node.op == "call_function" and writes(node):
            _Write(graph, order, views, modes, node).replace()


def grad_modes(graph: fx.Graph) -> dict[fx.Node, Any]:
    """For every node whether gradients are recorded there; None before the first switch."""
    out: dict[fx.Node, Any] = {}
    mode = None
    for node in graph.nodes:
        if getattr(node.target, "__name__", "") == GRAD_MODE:
            mode = node.args[0]
        out[node] = mode
    return out


def _layout(node: fx.Node) -> list[Any]:
    """The strides of a node's axes; where there is one position, any stride is the same."""
    value = node.meta["val"]
    return [d for n, d in zip(value.shape, value.stride(), strict=True) if n != 1]


def _reshapes(node: fx.Node) -> bool:
    """Whether an operator changes the shape of its operand in place."""
    return op_name(node) in _RESHAPES


_RESHAPES = frozenset(
    {"t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "resize_"}
    | {"resize_as_", "set_", "as_strided_", "rename_"}
)


class _Write:
    """One in-place write on its way to a functional twin.

    ``aliases`` are the nodes that share storage with an operand, as the graph was traced: once a
    write is gone, the storages of recorded values say nothing about what comes after it.
    """

    def __init__(
        self,
        graph: fx.Graph,
        order: dict[fx.Node, int],
        aliases: set[fx.Node],
        modes: dict[fx.Node, Any],
        node: fx.Node,
    ) -> None:
        self.graph, self.order, self.aliases, self.modes = graph, order, aliases, modes
        self.node = node
        self.views: list[fx.Node] = []  # from the written tensor up to the base
        base: Any = node.args[0]
        while base in aliases and not writes(base) and isinstance(base.args[0], fx.Node):
            self.views.append(base)
            base = base.args[0]
        self.base = base

    def replace(self) -> None:
        """Replace the write, or leave it where a condition does not hold."""
        later = [v for v in self._views() if self._outlives(v)] if self._fresh() else []
        sound = (
            self._fresh()
            and all(map(_invertible, self.views))
            and not any(map(_reshapes, self._views()))
            and self.modes[self.base] == self.modes[self.node]
            and all(_replayable(v, self.base) for v in later)
        )
        if not sound:
            return
        with self.graph.inserting_before(self.node):
            value = self._written_base()
        if value is not None:
            self._redirect(later, value)

    def _fresh(self) -> bool:
        """Whether the base is made in this graph and is no view (condition 1)."""
        made = isinstance(self.base, fx.Node) and self.base.op == "call_function"
        return made and self.base not in self.aliases

    def _written_base(self) -> fx.Node | None:
        """The base after the write; None where there is no such node (conditions 6 and 7)."""
        value = self._value()
        if value is None:
            return None
        for view in self.views:
            value = self._call(*_inverse(view, value), like=view.args[0])
            if not op_name(value).endswith("_scatter"):
                self.aliases.add(value)
        return value if _layout(value) == _layout(self.base) else None

    def _call(
        self, target: Any, *args: Any, like: Any, kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        new = self.graph.call_function(target, args, kwargs or {})
        new.meta = {k: v for k, v in self.node.meta.items() if k != "val"}
        new.meta["val"] = _fresh_value(new, like.meta["val"])
        self.order[new], self.modes[new] = self.order[self.node], self.modes[self.node]
        return new

    def _value(self) -> fx.Node | None:
        """What the written tensor holds afterwards."""
        node, target = self.node, self.node.args[0]
        own = value_of(operand(node))
        if op_name(node) == "copy_":
            source: Any = node.args[1]
            if source.meta["val"].dtype != own.dtype:
                source = self._call(aten.to.dtype, source, own.dtype, like=source)
            if source.meta["val"].shape != own.shape:
                source = self._call(aten.expand_as.default, source, target, like=target)
            dense = {"memory_format": torch.contiguous_format}
            return self._call(aten.clone.default, source, like=target, kwargs=dense)
        twin = _functional_twin(node)
        if twin is None:
            return None
        new = self._call(twin, *node.args, like=target, kwargs=dict(node.kwargs))
        held = new.meta["val"]
        return new if (held.shape, held.dtype) == (own.shape, own.dtype) else None

    def _views(self) -> list[fx.Node]:
        """Every node that shares the base's storage."""
        found: dict[fx.Node, None] = {}
        stack = [self.base]
        while stack:
            for user in stack.pop().users:
                if user in self.aliases and user not in found:
                    found[user] = None
                    stack.append(user)
        return list(found)

    def _outlives(self, view: fx.Node) -> bool:
        """Whether a view from before the write is read after it."""
        at = self.order[self.node]
        return self.order[view] < at and any(self.order[u] > at for u in view.users)

    def _redirect(self, later: list[fx.Node], value: fx.Node) -> None:
        """Uses after the write read the new value, through the same views."""
        base, at = self.base, self.order[self.node]
        renewed: dict[fx.Node, fx.Node] = {base: value}

        def renew(view: fx.Node) -> fx.Node:
            if view not in renewed:
                args = (renew(operand(view)), *view.args[1:])
                renewed[view] = self._call(view.target, *args, like=view)
                self.aliases.add(renewed[view])
            return renewed[view]

        with self.graph.inserting_before(self.node):
            written: Any = self.node.args[0]
            moved = {view: renew(view) for view in (*later, written)}
        moved[base], moved[self.node] = value, moved[written]
        for old, new in moved.items():
            for user in list(old.users):
                if self.order[user] > at:
                    user.replace_input_with(old, new)
        self.graph.erase_node(self.node)


def _invertible(view: fx.Node) -> bool:
    if op_name(view) in ("slice", "select", "transpose", "permute", "alias"):
        return True
    if op_name(view) not in VIEWS:
        return False
    return all(isinstance(s, int) for s in value_of(operand(view)).shape)


def _inverse(view: fx.Node, value: fx.Node) -> tuple[Any, ...]:
    """The call that puts ``value`` back to where ``view`` was taken from."""
    name, (source, *rest) = op_name(view), view.args
    if name == "slice":
        return aten.slice_scatter.default, source, value, *rest
    if name == "select":
        return aten.select_scatter.default, source, value, *rest
    if name == "transpose":
        return aten.transpose.int, value, *rest
    if name == "permute":
        order = permuted(view)
        return aten.permute.default, value, [order.index(i) for i in range(len(order))]
    if name == "alias":
        return aten.alias.default, value
    return aten.reshape.default, value, list(value_of(operand(view)).shape)


def _replayable(view: fx.Node, base: fx.Node) -> bool:
    """Whether ``view`` reaches ``base`` by single-tensor views alone."""
    node: Any = view
    while node is not base:
        if not isinstance(node, fx.Node) or node.op != "call_function" or writes(node):
            return False
        if isinstance(node.meta.get("val"), (list, tuple)) or not node.args or node.kwargs:
            return False
        node = node.args[0]
    return True


def _fresh_value(node: fx.Node, like: Tensor) -> Any:
    """A fake value of a new node, which shares storage only where its operator views."""
    with fake_mode_of(like), torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _functional_twin(node: fx.Node) -> Any:
    """The functional overload of an in-place ATen node with unchanged dtype, else None."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    name = node.target.__name__.split(".")[0]
    if not writes(node) or not name.endswith("_") or name.endswith("__"):
        return None
    own = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    for arg in node.all_input_nodes[1:]:
        other = arg.meta.get("val")
        if isinstance(other, Tensor) and other.dtype not in (torch.bool, getattr(own, "dtype", 0)):
            return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, overload_name(node.target), None) if packet else None
