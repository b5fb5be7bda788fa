"""``convert``: a captured graph under a plan as a plain module, no compiler involved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.capture.capture import Capture
from attnpass.capture.captured import CapturedGraph
from attnpass.errors import CaptureError
from attnpass.plan import Plan
from attnpass.torch_internals import expression, maybe_dynamic, pytree, unmark_dynamic

log = logging.getLogger("attnpass")


def convert(model: nn.Module, plan: Plan, *args: Any, **kwargs: Any) -> nn.Module:
    """A plain module that computes ``model`` under ``plan``, no compiler involved.

    It shares the model's parameters and the plan's, is differentiable, takes arguments of the same
    structure, and any batch size (the first axis of tensor arguments). Training or evaluation mode
    is what the model was in.

    Raises:
        CaptureError: the model does not capture as one graph, or takes or returns what no graph
            can carry.
    """
    capture = Capture(model)
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    for tensor in tensors:
        if tensor.dim() and tensor.shape[0] > 1:
            maybe_dynamic(tensor, 0)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled() and model.training):
            result = capture.record(*args, **kwargs)
    finally:
        for tensor in tensors:
            unmark_dynamic(tensor)
    if capture.calls != 1:
        raise CaptureError(
            f"expected a model that captures as one graph, got {capture.calls} calls of graphs;"
            " use torch.compile(model, backend='attnpass') or remove the graph breaks"
        )
    _refuse_sizes(capture, result, args, kwargs)
    capture.bind_plan(plan)
    capture.use(plan)
    return Converted(model, capture.graphs[0], (args, kwargs), result)


def _twins(leaves: list[Any]) -> list[int]:
    """For every leaf the first position of the same tensor."""
    ids = [id(x) if isinstance(x, Tensor) else -i for i, x in enumerate(leaves)]
    return [ids.index(i) for i in ids]


def _refuse_sizes(capture: Capture, result: Any, args: Any, kwargs: Any) -> None:
    """Refuse a number in the result that changes with the batch: it would be frozen."""

    def numbers(value: Any) -> list[Any]:
        return [x for x in pytree.tree_leaves(value) if isinstance(x, (int, float))]

    if not numbers(result):
        return
    graph = capture.graphs[0]
    last = graph.last

    def twice(x: Any) -> Any:
        return torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() else x

    with torch.no_grad():
        other = capture(*pytree.tree_map(twice, args), **pytree.tree_map(twice, kwargs))
    graph.last = last
    if numbers(other) != numbers(result):
        raise CaptureError(
            "expected a model that returns tensors, got a number that changes with"
            " the batch; wrap it to return tensors"
        )


@dataclass(frozen=True)
class State:
    """A parameter or buffer of the model, by its path there."""

    path: str


@dataclass(frozen=True)
class Argument:
    """The tensor at a position among the leaves of the arguments."""

    position: int


@dataclass(frozen=True)
class Size:
    """The size of an argument along an axis."""

    position: int
    axis: int


@dataclass(frozen=True)
class Constant:
    """A tensor that the graph holds, by its name as a buffer."""

    name: str


@dataclass(frozen=True)
class Output:
    """The result of the graph at a position."""

    position: int


@dataclass(frozen=True)
class Value:
    """Something that is no tensor and stays as it was at conversion."""

    value: Any


Source = State | Argument | Size | Constant | Value
"""Where an input of the graph comes from at each call."""

Result = Output | Argument | Value
"""Where a leaf of the module's result comes from."""


class Converted(nn.Module):
    """A captured graph as a module: parameters by name, arguments and results by structure.

    Args:
        model: whose parameters and buffers are shared. graph: captured, under the plan in use.
        given: the arguments at conversion. result: the model's result for them.

    Raises:
        CaptureError: the result holds what the graph does not make.
    """

    def __init__(self, model: nn.Module, graph: CapturedGraph, given: Any, result: Any) -> None:
        super().__init__()
        assert graph.last is not None
        inputs, outputs = graph.last
        layer = graph.layer(inputs)
        assert isinstance(layer.active, fx.GraphModule)
        self.graph_module = layer.active
        self.deltas = nn.ModuleDict({str(i): delta for i, delta in layer.deltas.items()})
        self._deltas = dict(layer.deltas)
        leaves, self._in_spec = pytree.tree_flatten(given)
        self._plain = [None if isinstance(x, Tensor) else (x,) for x in leaves]
        self._twins = _twins(leaves)
        self._sources = self._found_sources(model, graph, inputs, leaves)
        for source in dict.fromkeys(self._sources):
            if isinstance(source, State):
                self._adopt(source.path, model)
        found, self._out_spec = pytree.tree_flatten(result)
        self._results = [_result(leaf, outputs, leaves) for leaf in found]

    def _found_sources(
        self, model: nn.Module, graph: CapturedGraph, inputs: Sequence[Any], leaves: list[Any]
    ) -> list[Source]:
        """Where each input of the graph comes from."""
        own = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        paths = {id(tensor): path for path, tensor in own}
        position = {id(x): i for i, x in enumerate(leaves) if isinstance(x, Tensor)}
        symbols = [n.meta.get("val") for n in graph.normal.graph.find_nodes(op="placeholder")]
        arguments = [
            (position[id(x)], fake)
            for x, fake in zip(inputs, symbols, strict=True)
            if id(x) in position and isinstance(fake, Tensor)
        ]
        sources: list[Source] = []
        for i, (x, symbol) in enumerate(zip(inputs, symbols, strict=True)):
            size = _size_of_an_argument(symbol, arguments)
            if id(x) in paths:
                sources.append(State(paths[id(x)]))
            elif id(x) in position:
                sources.append(Argument(position[id(x)]))
            elif size is not None:
                sources.append(size)
            elif isinstance(x, Tensor):
                self.register_buffer(f"constant_{i}", x, persistent=False)
                sources.append(Constant(f"constant_{i}"))
            else:
                sources.append(Value(x))
        return sources

    def _adopt(self, path: str, model: nn.Module) -> None:
        """Register the model's own tensor, shared, under a name without dots."""
        owner, _, leaf = path.rpartition(".")
        tensor, flat = getattr(model.get_submodule(owner), leaf), path.replace(".", "__")
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(flat, tensor)
        else:
            self.register_buffer(flat, tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output under the plan; same structure of arguments as at conversion.

        Raises:
            CaptureError: other structure, other values that are no tensors, or tensors that are
                one where they were two, or two where they were one.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        self._check(leaves, spec)
        inputs = [self._fetched(source, leaves) for source in self._sources]
        for i, delta in self._deltas.items():
            inputs[i] = delta.add(inputs[i])
        outputs = self.graph_module(*inputs)
        results = [
            outputs[r.position]
            if isinstance(r, Output)
            else leaves[r.position]
            if isinstance(r, Argument)
            else r.value
            for r in self._results
        ]
        return pytree.tree_unflatten(results, self._out_spec)

    def _check(self, leaves: list[Any], spec: Any) -> None:
        """Raise CaptureError for arguments that the graph was not captured for."""
        if spec != self._in_spec:
            raise CaptureError("expected arguments of the structure given to convert, got another")
        for known, x in zip(self._plain, leaves, strict=True):
            if known is not None and known[0] != x:
                raise CaptureError(
                    f"expected {known[0]!r} as given to convert, got {x!r};"
                    " convert again for other values"
                )
        if _twins(leaves) != self._twins:
            raise CaptureError(
                "expected the same arguments to be one tensor as given to convert;"
                " convert with different tensors"
            )

    def _fetched(self, source: Source, leaves: list[Any]) -> Any:
        """The value of one input of the graph at this call."""
        match source:
            case State(path):
                return getattr(self, path.replace(".", "__"))
            case Argument(position):
                return leaves[position]
            case Size(position, axis):
                return leaves[position].shape[axis]
            case Constant(name):
                return getattr(self, name)
            case Value(value):
                return value


def _size_of_an_argument(symbol: Any, arguments: list[tuple[int, Tensor]]) -> Size | None:
    """The axis of an argument whose symbolic size a graph's input is; None where it is none."""
    if not isinstance(symbol, torch.SymInt):
        return None
    for position, fake in arguments:
        for axis, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt) and expression(size) == expression(symbol):
                return Size(position, axis)
    return None


def _result(leaf: Any, outputs: Sequence[Any], leaves: list[Any]) -> Result:
    """Where a leaf of the model's result comes from.

    Raises:
        CaptureError: from outside the graph, or it is no tensor and no plain value.
    """
    if not isinstance(leaf, Tensor):
        if isinstance(leaf, (int, float, str, type(None))):
            return Value(leaf)
        raise CaptureError(
            f"expected a model that returns tensors, got a {type(leaf).__name__};"
            " wrap it to return tensors"
        )
    for i, x in reversed(list(enumerate(outputs))):
        if x is leaf:
            return Output(i)
    for i, x in reversed(list(enumerate(leaves))):
        if x is leaf:
            return Argument(i)
    raise CaptureError(
        "expected outputs that the graph makes, got one made outside it;"
        " use torch.compile(model, backend='attnpass')"
    )
