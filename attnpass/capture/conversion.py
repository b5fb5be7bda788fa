"""Without a compiler: what a model's attention is, what a form would do, a plain module of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    capture.own(plan)
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


class Converted(nn.Module):
    """A captured graph as a module: parameters by name, arguments and results by structure."""

    def __init__(self, model: nn.Module, graph: CapturedGraph, given: Any, result: Any) -> None:
        super().__init__()
        assert graph.last is not None
        inputs, outputs = graph.last
        layer = graph.layer(inputs)
        active = layer.active
        assert isinstance(active, fx.GraphModule)
        leaves, self._in_spec = pytree.tree_flatten(given)
        self._plain = [None if isinstance(x, Tensor) else (x,) for x in leaves]
        self._twins = _twins(leaves)
        self.graph_module = active
        self.deltas = nn.ModuleDict({str(i): delta for i, delta in layer.deltas.items()})
        symbols = [n.meta.get("val") for n in graph.normal.graph.find_nodes(op="placeholder")]
        self._sources: list[tuple[str, Any]] = []
        state = {
            id(t): name
            for name, t in [
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            ]
        }
        position = {id(x): i for i, x in enumerate(leaves) if isinstance(x, Tensor)}
        for value, symbol in zip(inputs, symbols, strict=True):
            self._sources.append(self._source(value, symbol, state, position, symbols, inputs))
        for name in {n for kind, n in self._sources if kind == "state"}:
            self._adopt(name, model)
        self._outputs = self._results(result, outputs, leaves)

    def _source(
        self,
        value: Any,
        symbol: Any,
        state: dict[int, str],
        position: dict[int, int],
        symbols: list[Any],
        inputs: Sequence[Any],
    ) -> tuple[str, Any]:
        """Where one graph input comes from: state, an argument, or the size of an argument."""
        if id(value) in state:
            return "state", state[id(value)]
        if id(value) in position:
            return "argument", position[id(value)]
        if isinstance(symbol, torch.SymInt):
            for other, tensor in zip(symbols, inputs, strict=True):
                if isinstance(other, Tensor) and id(tensor) in position:
                    for dim, size in enumerate(other.shape):
                        if isinstance(size, torch.SymInt) and expression(size) == expression(
                            symbol
                        ):
                            return "size", (position[id(tensor)], dim)
        if isinstance(value, Tensor):
            self.register_buffer(f"constant_{len(self._sources)}", value, persistent=False)
            return "constant", f"constant_{len(self._sources)}"
        return "value", value

    def _adopt(self, name: str, model: nn.Module) -> None:
        """Register the model's own tensor, shared, under a name without dots."""
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        tensor, flat = getattr(owner, leaf), name.replace(".", "__")
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(flat, tensor)
        else:
            self.register_buffer(flat, tensor)

    def _results(self, result: Any, outputs: Any, leaves: list[Any]) -> list[tuple[str, Any]]:
        found, self._out_spec = pytree.tree_flatten(result)
        at = {id(x): i for i, x in enumerate(outputs)}
        arguments = {id(x): i for i, x in enumerate(leaves) if isinstance(x, Tensor)}
        picked: list[tuple[str, Any]] = []
        for leaf in found:
            if not isinstance(leaf, Tensor):
                if not isinstance(leaf, (int, float, str, type(None))):
                    raise CaptureError(
                        f"expected a model that returns tensors, got a"
                        f" {type(leaf).__name__}; wrap it to return tensors"
                    )
                picked.append(("value", leaf))
            elif id(leaf) in at:
                picked.append(("output", at[id(leaf)]))
            elif id(leaf) in arguments:
                picked.append(("argument", arguments[id(leaf)]))
            else:
                raise CaptureError(
                    "expected outputs that the graph makes, got one made outside it;"
                    " use torch.compile(model, backend='attnpass')"
                )
        return picked

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output under the plan; same structure of arguments as at conversion."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
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
        inputs = [self._fetch(kind, what, leaves) for kind, what in self._sources]
        for i, delta in self.deltas.items():
            inputs[int(i)] = delta.add(inputs[int(i)])  # type: ignore[operator]
        outputs = self.graph_module(*inputs)
        out = [
            outputs[w] if k == "output" else leaves[w] if k == "argument" else w
            for k, w in self._outputs
        ]
        return pytree.tree_unflatten(out, self._out_spec)

    def _fetch(self, kind: str, what: Any, leaves: list[Any]) -> Any:
        if kind == "argument":
            return leaves[what]
        if kind == "size":
            return leaves[what[0]].shape[what[1]]
        if kind == "state":
            return getattr(self, what.replace(".", "__"))
        return getattr(self, what) if kind == "constant" else what
