"""The module that ``convert`` returns: a captured graph, and where its inputs come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.capture.captured import CapturedGraph
from attnpass.capture.conversion_guards import Gradients, Guards, SizeConditions
from attnpass.capture.single_item import Sizes, same_graph
from attnpass.errors import CaptureError
from attnpass.torch_internals import expression, pytree, size_guards


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
            fakes: of its arguments, by position. given: the arguments at conversion. result: the
            model's result for them. gradients: what holds of them, for the parameters and buffers
            in use and whether the result holds plain values.

    Raises:
        CaptureError: the result holds what the graph does not make, or an input of the graph comes
            from nowhere that a call could look.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: CapturedGraph,
        fakes: dict[int, Tensor],
        given: Any,
        result: Any,
        gradients: Callable[[list[Tensor], bool], Gradients],
    ) -> None:
        super().__init__()
        assert graph.last is not None
        inputs, outputs = graph.last
        layer = graph.layer(inputs)
        assert isinstance(layer.active, fx.GraphModule)
        self.graph_module = layer.active
        self.deltas = nn.ModuleDict({str(i): delta for i, delta in layer.deltas.items()})
        self._deltas = dict(layer.deltas)
        leaves, self._in_spec = pytree.tree_flatten(given)
        symbols = graph.placeholders
        self._sources = self._found_sources(model, inputs, symbols, leaves, fakes)
        state = {}
        for source in dict.fromkeys(self._sources):
            if isinstance(source, State):
                state[source.path] = self._adopt(source.path, model)
        self._state = [path.replace(".", "__") for path in state]
        found, self._out_spec = pytree.tree_flatten(result)
        self._results = [_result(leaf, outputs, leaves) for leaf in found]
        plain = any(isinstance(r, Value) for r in self._results)
        asked = gradients(list(state.values()), plain)
        sizes = _sizes(fakes)
        self._guards = Guards(leaves, _names(given), state, model.training, sizes, asked)
        self.train(model.training)

    def _found_sources(
        self,
        model: nn.Module,
        inputs: Sequence[Any],
        symbols: Sequence[Any],
        leaves: list[Any],
        fakes: dict[int, Tensor],
    ) -> list[Source]:
        """Where each input of the graph comes from."""
        own = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        paths = {id(tensor): path for path, tensor in own}
        position = {
            id(x): i for i, x in reversed(list(enumerate(leaves))) if isinstance(x, Tensor)
        }
        sources: list[Source] = []
        for i, (x, symbol) in enumerate(zip(inputs, symbols, strict=True)):
            if id(x) in paths:
                sources.append(State(paths[id(x)]))
            elif id(x) in position:
                sources.append(Argument(position[id(x)]))
            elif isinstance(x, Tensor):
                self.register_buffer(f"constant_{i}", x, persistent=False)
                sources.append(Constant(f"constant_{i}"))
            else:
                sources.append(_size_of_an_argument(x, symbol, fakes))
        return sources

    def add(self, one: Converted, sizes: Sizes | None) -> None:
        """Take the calls of another capture too, where its graph is this one (``single_item``)."""
        if (
            sizes is not None
            and self._ends() == one._ends()
            and same_graph(self.graph_module, one.graph_module, sizes)
        ):
            self._guards.add(one._guards)

    def _ends(self) -> tuple[Any, ...]:
        """Where what is no size comes from and goes to, with the deltas there."""
        rows = enumerate(self._sources)
        sources = [
            (id(getattr(self, s.name)) if isinstance(s, Constant) else s, self._deltas.get(i))
            for i, s in rows
            if not isinstance(s, Size)
        ]
        return sources, self._results, self._out_spec

    def _adopt(self, path: str, model: nn.Module) -> Tensor:
        """The model's own tensor, registered, shared, under a name without dots."""
        owner, _, leaf = path.rpartition(".")
        tensor, flat = getattr(model.get_submodule(owner), leaf), path.replace(".", "__")
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(flat, tensor)
        else:
            self.register_buffer(flat, tensor)
        assert isinstance(tensor, Tensor)
        return tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output under the plan, for a call that the conversion covers.

        Raises:
            CaptureError: it does not; the message says what was expected, and the cure.
        """
        kwargs = dict(sorted(kwargs.items()))
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._in_spec:
            raise CaptureError(
                "expected arguments of the structure given to convert, got another; pass the same"
                " ones by position and by keyword"
            )
        self._guards.check(leaves, [getattr(self, name) for name in self._state], self.training)
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


def _sizes(fakes: dict[int, Tensor]) -> SizeConditions:
    """The conditions under which the graph was captured, over the leaves ``x``."""
    if not fakes:
        return SizeConditions(())
    texts = size_guards({f"t{i}": fake for i, fake in fakes.items()})
    return SizeConditions([re.sub(r"L\['t(\d+)'\]", r"x[\1]", f"({t})") for t in texts])


def _names(given: Any) -> list[str]:
    """What the leaves of the arguments are called."""
    args, kwargs = given
    rows = [
        (name, path)
        for name, part in (("args", args), ("kwargs", kwargs))
        for path, _ in pytree.tree_flatten_with_path(part)[0]
    ]
    return [name + pytree.keystr(path) for name, path in rows]


def _size_of_an_argument(x: Any, symbol: Any, fakes: dict[int, Tensor]) -> Size | Value:
    """The axis of an argument whose symbolic size a graph's input is; a value where it is none.

    Raises:
        CaptureError: a symbolic number that is no argument's size.
    """
    if not isinstance(symbol, (torch.SymInt, torch.SymFloat)):
        return Value(x)
    for position, fake in fakes.items():
        for axis, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt) and expression(size) == expression(symbol):
                return Size(position, axis)
    raise CaptureError(
        f"expected numbers that are sizes of arguments, got {symbol}, which is none;"
        " pass it as a tensor"
    )


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
