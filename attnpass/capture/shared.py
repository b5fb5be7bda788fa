"""What runs of one graph under several plans have in common is computed once.

A plan that first differs from an earlier one in its eighth layer starts there: the values that
stood between the seventh and the eighth attention are kept, for each batch.

Soundness: a value is taken from an earlier run only where the same operators made it of the same
inputs, and nobody else holds it. Conditions:

1. Nothing in the graph writes, draws a random number or has an effect.
2. Batches have the same content. Weights are the same tensors, with the same memory, and no
   operator wrote to them since.
3. Forms and changed weights have the same content, in the same graph.
4. Neither gradients nor autocast nor inference mode are on; all inputs are plain tensors.
5. No output shares memory with a value that is kept.

Not covered: weights that are written past autograd (``.data``), and forms whose values change
without a new ``use`` of the plan.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from attnpass.fingerprint import content_digest
from attnpass.graph import draws, is_impure, op_name, operators
from attnpass.torch_internals import pytree

_Key = tuple[int, int]
"""Numbers of a batch and of a node."""

_BATCHES = 1000
"""So many batches are told apart at a time."""

_NEVER = 2**62

_ANCHORS = operators.SOFTMAX | {"scaled_dot_product_attention"}


@dataclass(frozen=True)
class Given:
    """What a graph is run with.

    Attributes:
        inputs: before weights were changed. changed: the same after it.
        weights: positions of the model's own tensors. deltas: contents of what was added, by
            position. forms: contents of the graph's submodules, by their names.
    """

    inputs: Sequence[Any]
    changed: Sequence[Any]
    weights: Collection[int] = ()
    deltas: Mapping[int, Hashable] = field(default_factory=dict)
    forms: Mapping[str, Hashable] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Condition 4."""
        tensors = [x for x in self.inputs if isinstance(x, Tensor)]
        kinds = {"cpu", *(x.device.type for x in tensors)}
        return (
            not torch.is_grad_enabled()
            and not torch.is_inference_mode_enabled()
            and not any(torch.is_autocast_enabled(kind) for kind in kinds)
            and all(_is_plain(x) for x in tensors)
        )


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

    def run(self, graph: fx.GraphModule, given: Given) -> Any:
        """What ``graph(*given.changed)`` returns."""
        if not given.plain or not _is_pure(graph):
            return graph(*given.changed)
        if graph not in self._named:
            self._named[graph] = self.named(graph, given)
        batch = tuple(
            self._identity(x) if i in given.weights else _content(x)
            for i, x in enumerate(given.inputs)
        )
        if batch not in self._batches and len(self._batches) == _BATCHES:
            self._batches.clear()
        number = self._batches.setdefault(batch, next(self._count))
        names = {node: (number, name) for node, name in self._named[graph].items()}
        env = dict(zip(graph.graph.find_nodes(op="placeholder"), given.changed, strict=True))
        needed, known = self._needed(graph, names, env)
        taken = _memory(env[x] for x in known)
        results, kept = _computed(graph, needed, env)
        memory = _memory(pytree.tree_leaves(results))
        if memory & taken:
            return graph(*given.changed)
        for node, x in kept:
            if not _memory([x]) & memory:
                self._keep(names[node], x)
        return results

    def named(self, graph: fx.GraphModule, given: Given) -> dict[fx.Node, int]:
        """A number for each node: nodes with the same one have one value for the same inputs."""
        found: dict[fx.Node, int] = {}
        positions = itertools.count()
        for node in graph.graph.nodes:
            made: Hashable
            if node.op == "placeholder":
                at = next(positions)
                made = ("input", at, given.deltas.get(at))
            elif node.op == "get_attr":
                held = _attribute(graph, str(node.target))
                plain = isinstance(held, Tensor) and _is_plain(held)
                made = ("held", _content(held) if plain else self._identity(held))
            else:
                target: Hashable = node.target
                if node.op == "call_module":
                    target = given.forms[str(target)]
                made = (node.op, target, _frozen(node.args, found), _frozen(node.kwargs, found))
            found[node] = self._names.setdefault(made, len(self._names))
        return found

    def _identity(self, x: Any) -> Hashable:
        """Something that is the same only for the same object, not written since."""
        if not isinstance(x, (Tensor, torch.nn.Module)):
            return _content(x)
        if x not in self._serial:
            self._serial[x] = next(self._count)
        state = (x._version, x.data_ptr()) if isinstance(x, Tensor) else ()
        return self._serial[x], *state

    def _needed(
        self, graph: fx.GraphModule, names: Mapping[fx.Node, _Key], env: dict[fx.Node, Any]
    ) -> tuple[set[fx.Node], list[fx.Node]]:
        """The nodes that have to run, and those whose values are known, which are in ``env`` now.

        Outputs are made anew: they are the caller's.
        """
        found: set[fx.Node] = set()
        known: list[fx.Node] = []
        outputs = {*graph.graph.output_node().all_input_nodes}
        stack = list(outputs)
        while stack:
            node = stack.pop()
            if node in found or node in env:
                continue
            x, version = self._values.get(names[node], (None, 0))
            if x is not None and x._version == version and node not in outputs:
                self._values.move_to_end(names[node])
                env[node] = x
                known.append(node)
            else:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found, known

    def _keep(self, key: _Key, x: Tensor) -> None:
        old = self._values.pop(key, None)
        if old is not None:
            self.held -= old[0].untyped_storage().nbytes()
        self._values[key] = x, x._version
        self.held += x.untyped_storage().nbytes()
        while self.held > self.limit:
            _, (x, _) = self._values.popitem(last=False)
            self.held -= x.untyped_storage().nbytes()


def _computed(
    graph: fx.GraphModule, needed: set[fx.Node], env: dict[fx.Node, Any]
) -> tuple[Any, list[tuple[fx.Node, Tensor]]]:
    """The outputs, and between any two attentions the smallest set of live values."""
    order = [node for node in graph.graph.nodes if node in needed]
    output = graph.graph.output_node()
    dying: dict[fx.Node, list[fx.Node]] = {}
    last = {x: node for node in order for x in node.all_input_nodes}
    for x, node in last.items():
        if x.op not in ("placeholder", "get_attr") and x not in output.all_input_nodes:
            dying.setdefault(node, []).append(x)
    sizes = {x: _size(value) for x, value in env.items() if x.op != "placeholder"}
    total = sum(sizes.values())
    smallest, cut = _NEVER, dict[fx.Node, Any]()
    kept: list[tuple[fx.Node, Tensor]] = []
    for node in order:
        if node.op == "call_module" or op_name(node) in _ANCHORS:
            kept += cut.items()
            smallest, cut = _NEVER, {}
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        env[node] = _call(graph, node, args, kwargs)
        if node.op != "get_attr":
            sizes[node] = _size(env[node])
            total += sizes[node]
        for x in dying.get(node, ()):
            total -= sizes.pop(x)
            del env[x]
        if total < smallest:
            smallest, cut = total, {x: env[x] for x in sizes}
    return fx.map_arg(output.args[0], env.__getitem__), kept


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor has memory of its own that can be compared, and a count of writes."""
    kind = type(x) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return kind and x.layout is torch.strided and not (x.is_nested or x.is_inference())


def _is_pure(graph: fx.GraphModule) -> bool:
    """Condition 1."""
    if "pure" not in graph.meta:
        inner = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
        graph.meta["pure"] = not any(is_impure(n) or draws(n) for n in inner)
    return bool(graph.meta["pure"])


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
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _content(x: Any) -> Hashable:
    """An input as something to compare."""
    if isinstance(x, Tensor):
        return content_digest([x]), x.stride(), x.device
    return _frozen(x, {})


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
    return x.nbytes if isinstance(x, Tensor) and _is_plain(x) else _NEVER


def _memory(values: Any) -> set[int]:
    """Where the memory of tensors begins."""
    return {x.untyped_storage().data_ptr() for x in values if isinstance(x, Tensor)}
