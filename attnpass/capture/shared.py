"""What runs of one graph under several plans have in common is computed once.

A plan that first differs from an earlier one in its eighth layer starts there: the values that
stood between the seventh and the eighth attention are kept, for each batch.

Soundness: a value is taken from an earlier run only where the same operators made it of the same
inputs. Conditions:

1. Nothing in the graph writes, draws a random number or has an effect.
2. Inputs are the same tensors, not written and not given other memory since.
3. Forms and changed weights are known by their content; those without a content by identity.
4. Neither gradients nor autocast are on.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from attnpass.graph import draws, is_impure, op_name, operators

Keys = Mapping[str, Hashable]
"""Per submodule of a graph what it computes, by content."""

_Key = tuple[int, int]
"""Numbers of a batch and of a node."""

_BATCHES = 1000
"""So many batches are told apart at a time."""

_NEVER = 2**62

_ANCHORS = operators.SOFTMAX | {"scaled_dot_product_attention"}


class Shared:
    """Values of earlier runs, the least recently used of which are forgotten.

    Args:
        limit: bytes of all values together.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._values: OrderedDict[_Key, tuple[Tensor, int]] = OrderedDict()
        self._names: dict[Hashable, int] = {}
        self._named: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._batches: dict[Hashable, int] = {}
        self._serial: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._count = itertools.count()

    def run(
        self,
        graph: fx.GraphModule,
        inputs: Sequence[Any],
        given: Sequence[Any],
        keys: Keys,
        changed: Mapping[int, Hashable],
    ) -> Any:
        """What ``graph(*given)`` returns.

        Args:
            inputs: what was given, before weights were changed. keys: contents of submodules.
            changed: contents of what was added to inputs, by position.
        """
        if torch.is_grad_enabled() or _autocast() or not _is_pure(graph):
            return graph(*given)
        if graph not in self._named:
            self._named[graph] = self.named(graph, keys, changed)
        batch = tuple(self._identity(x) for x in inputs)
        if batch not in self._batches and len(self._batches) == _BATCHES:
            self._batches.clear()  # of a data set that makes its batches anew
        number = self._batches.setdefault(batch, next(self._count))
        names = {node: (number, name) for node, name in self._named[graph].items()}
        env = dict(zip(graph.graph.find_nodes(op="placeholder"), given, strict=True))
        needed = self._needed(graph, names, env)
        return self._computed(graph, needed, names, env)

    def named(
        self, graph: fx.GraphModule, keys: Keys, changed: Mapping[int, Hashable]
    ) -> dict[fx.Node, int]:
        """A number for each node: nodes with the same one have one value for the same inputs."""
        found: dict[fx.Node, int] = {}
        positions = itertools.count()
        for node in graph.graph.nodes:
            made: Hashable
            if node.op == "placeholder":
                at = next(positions)
                made = ("input", at, changed.get(at))
            elif node.op == "get_attr":
                made = ("held", self._identity(_attribute(graph, str(node.target))))
            else:
                target: Hashable = node.target
                if node.op == "call_module":
                    target = keys[str(target)]
                made = (node.op, target, _frozen(node.args, found), _frozen(node.kwargs, found))
            found[node] = self._names.setdefault(made, len(self._names))
        return found

    def _identity(self, x: Any) -> Hashable:
        """Something that is the same only for the same input, as it was."""
        if not isinstance(x, (Tensor, torch.nn.Module)):
            return _frozen(x, {})
        if x not in self._serial:
            self._serial[x] = next(self._count)
        state = (x._version, x.data_ptr()) if isinstance(x, Tensor) else ()
        return self._serial[x], *state

    def _needed(
        self, graph: fx.GraphModule, names: Mapping[fx.Node, _Key], env: dict[fx.Node, Any]
    ) -> set[fx.Node]:
        """The nodes that have to run; known values among their operands are put into ``env``."""
        found: set[fx.Node] = set()
        stack = list(graph.graph.output_node().all_input_nodes)
        while stack:
            node = stack.pop()
            if node in found or node in env:
                continue
            known, version = self._values.get(names[node], (None, 0))
            if known is not None and known._version == version:
                self._values.move_to_end(names[node])
                env[node] = known
            else:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found

    def _computed(
        self,
        graph: fx.GraphModule,
        needed: set[fx.Node],
        names: Mapping[fx.Node, _Key],
        env: dict[fx.Node, Any],
    ) -> Any:
        """The outputs; between two attentions the smallest set of live values is kept."""
        order = [node for node in graph.graph.nodes if node in needed]
        last = {x: node for node in order for x in node.all_input_nodes}
        dying: dict[fx.Node, list[fx.Node]] = {}
        output = graph.graph.output_node()
        for x, node in last.items():
            if x.op not in ("placeholder", "get_attr") and x not in output.all_input_nodes:
                dying.setdefault(node, []).append(x)
        sizes = {x: _size(value) for x, value in env.items() if x.op != "placeholder"}
        total = sum(sizes.values())
        smallest, kept = _NEVER, dict[fx.Node, Any]()
        for node in order:
            if node.op == "call_module" or op_name(node) in _ANCHORS:
                self._keep(kept, names)
                smallest, kept = _NEVER, {}
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = _call(graph, node, args, kwargs)
            if node.op != "get_attr":
                sizes[node] = _size(env[node])
                total += sizes[node]
            for x in dying.get(node, ()):
                total -= sizes.pop(x)
                del env[x]
            if total < smallest:
                smallest, kept = total, {x: env[x] for x in sizes}
        return fx.map_arg(output.args[0], env.__getitem__)

    def _keep(self, values: Mapping[fx.Node, Any], names: Mapping[fx.Node, _Key]) -> None:
        for node, x in values.items():
            before = self._values.pop(names[node], None)
            self._values[names[node]] = x.detach(), x._version
            self.held += 0 if before else x.untyped_storage().nbytes()
        while self.held > self.limit:
            _, (x, _) = self._values.popitem(last=False)
            self.held -= x.untyped_storage().nbytes()


def _is_pure(graph: fx.GraphModule) -> bool:
    """Condition 1."""
    if "pure" not in graph.meta:
        inner = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
        graph.meta["pure"] = not any(is_impure(n) or draws(n) for n in inner)
    return bool(graph.meta["pure"])


def _autocast() -> bool:
    return any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _attribute(graph: fx.GraphModule, path: str) -> Any:
    found: Any = graph
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _call(graph: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "get_attr":
        return _attribute(graph, str(node.target))
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _frozen(x: Any, names: Mapping[fx.Node, int]) -> Hashable:
    """An argument as something to compare: 1, 1.0 and True are three, and so are 0.0 and -0.0."""
    if isinstance(x, fx.Node):
        return "node", names[x]
    if isinstance(x, (tuple, list)):
        return type(x), tuple(_frozen(y, names) for y in x)
    if isinstance(x, dict):
        return "dict", tuple((key, _frozen(y, names)) for key, y in sorted(x.items()))
    if isinstance(x, slice):
        return "slice", _frozen((x.start, x.stop, x.step), names)
    return type(x), repr(x) if isinstance(x, float) else x


def _size(x: Any) -> int:
    """Bytes of a tensor; more than anything has for what is never kept."""
    return x.nbytes if type(x) in (Tensor, torch.nn.Parameter) else _NEVER
