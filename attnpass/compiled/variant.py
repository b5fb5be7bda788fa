"""One variant of a graph: rewritten with one layer's forms and compiled.

The parameters of the forms and of the deltas become inputs of the compiled graph. So layers that
differ only in the values of these parameters share one variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass.compiled.inner import Compiled
from attnpass.compiled.layers import Layer
from attnpass.graph import Opened, checked, dump, retrace, unfold
from attnpass.matching import MatchedGraph
from attnpass.plan import Delta
from attnpass.rewrite import FORMS_ATTRIBUTE, check_rewritten, rewrite
from attnpass.torch_internals import mark_static, reparametrized

InnerCompiler = Callable[[fx.GraphModule, list[Any]], Compiled]
"""Hands a graph and its inputs on to the inner compiler."""


def added_values(
    modules: Mapping[str, nn.Module], deltas: Mapping[int, Delta]
) -> dict[tuple[str | int, str], nn.Parameter]:
    """The inputs that a variant adds, in order: parameters of the modules, then of the deltas.

    Keys are the site or the input position, and the parameter's name there.
    """
    owners: list[tuple[str | int, nn.Module]] = [*sorted(modules.items()), *sorted(deltas.items())]
    return {
        (at, name): value
        for at, owner in owners
        for name, value in sorted(owner.named_parameters())
    }


def signature(layer: Layer) -> tuple[Any, ...]:
    """What two layers must share to run the same variant: all but the values of parameters."""
    parts: list[tuple[str | int, nn.Module]] = [
        *sorted(layer.modules.items()),
        *sorted(layer.deltas.items()),
    ]
    return tuple((at, _signature(module)) for at, module in parts)


def _signature(module: nn.Module) -> tuple[Any, ...]:
    plain = {k: repr(v) for k, v in vars(module).items() if not k.startswith("_")}
    shapes = {n: (tuple(p.shape), p.requires_grad) for n, p in module.named_parameters()}
    return (type(module).__name__, *sorted(plain.items()), *sorted(shapes.items()))


def compile_variant(
    original: fx.GraphModule,
    graph: MatchedGraph,
    inputs: list[Any],
    layer: Layer,
    inner: InnerCompiler,
) -> Compiled:
    """The graph under one layer's forms, compiled; takes the inputs and then the added values.

    Where gradients are on, the deltas are added to the inputs inside, so that both learn; else
    the caller gives the inputs with the deltas added.
    """
    modules = layer.modules
    if not modules:
        return inner(original, inputs)
    # rewrite: each region becomes a call of its form's module
    rewritten = rewrite(graph.normal, graph.regions, modules)
    inside = layer.deltas if torch.is_grad_enabled() else {}
    values = added_values(modules, inside)
    mark_static(values.values())

    def run(*given: Any) -> Any:
        added = dict(zip(values, given[len(inputs) :], strict=True))
        weights = list(given[: len(inputs)])
        for i, delta in inside.items():
            parts = {name: x for (at, name), x in added.items() if at == i}
            with reparametrized(delta, parts):
                weights[i] = delta.add(weights[i])
        forms = rewritten.get_submodule(FORMS_ATTRIBUTE)
        assert isinstance(forms, nn.ModuleDict)
        with reparametrized(forms, _by_position(forms, added, modules)):
            return Opened(rewritten).run(*weights)

    # trace once more: forms and deltas become plain operators
    everything = [*inputs, *values.values()]
    traced = retrace(run, original, everything)
    if checked():
        check_rewritten(graph.normal, traced, "traced")
    dump("traced", traced)
    return inner(unfold(traced), everything)


def _by_position(
    forms: nn.ModuleDict,
    added: Mapping[tuple[str | int, str], Tensor],
    modules: Mapping[str, nn.Module],
) -> dict[str, Tensor]:
    """The forms' values under the names that the rewritten graph's forms have."""
    where = {id(module): key for key, module in forms.items()}
    return {
        f"{where[id(modules[at])]}.{name}": value
        for (at, name), value in added.items()
        if isinstance(at, str)
    }
