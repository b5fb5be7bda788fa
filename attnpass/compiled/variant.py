"""One variant of a graph: rewritten with one layer's forms and compiled.

The parameters of the forms and of the deltas become inputs of the compiled graph. So layers that
differ only in the values of these parameters share one variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from attnpass.compiled.added import added_values, delta_of
from attnpass.compiled.inner import Compiled
from attnpass.compiled.layers import Layer
from attnpass.graph import Opened, checked, dump, retrace, unfold
from attnpass.matching import MatchedGraph
from attnpass.plan import Plan, added
from attnpass.rewrite import FORMS_ATTRIBUTE, check_rewritten, rewrite
from attnpass.torch_internals import mark_static, reparametrized

InnerCompiler = Callable[[fx.GraphModule, list[Any]], Compiled]
"""Hands a graph and its inputs on to the inner compiler."""


def signature(plan: Plan, layer: Layer) -> tuple[Any, ...]:
    """What two layers must share to run the same variant: all but the values of parameters."""
    parts: list[tuple[str | int, nn.Module]] = [*sorted(layer.modules.items())]
    parts += [(i, delta_of(plan, *at)) for i, at in sorted(layer.deltas.items())]
    return tuple((at, _signature(module)) for at, module in parts)


def _signature(module: nn.Module) -> tuple[Any, ...]:
    plain = {k: repr(v) for k, v in vars(module).items() if not k.startswith("_")}
    shapes = {n: (tuple(p.shape), p.requires_grad) for n, p in module.named_parameters()}
    return (type(module).__name__, *sorted(plain.items()), *sorted(shapes.items()))


def compile_variant(
    original: fx.GraphModule,
    graph: MatchedGraph,
    inputs: list[Any],
    plan: Plan,
    layer: Layer,
    kept: Mapping[str, nn.Module],
    inner: InnerCompiler,
) -> Compiled:
    """The graph under one layer's forms, compiled; takes the inputs and then the added values.

    Weights get their deltas inside, at every call, unless the layer is ``held``. ``kept`` are the
    modules of the sites that stay softmax, where there is a quicker one.
    """
    modules = {**kept, **layer.modules}
    if not modules:
        return inner(original, inputs)
    # rewrite: each region becomes a call of its form's module
    rewritten = rewrite(graph.normal, graph.regions, modules)
    inside = {} if layer.held else layer.deltas
    values = {key: value() for key, value in added_values(plan, layer).items()}
    mark_static(values.values())

    def run(*given: Any) -> Any:
        extra = dict(zip(values, given[len(inputs) :], strict=True))
        weights = list(given[: len(inputs)])
        for i in inside:
            parts = {name: x for (at, name), x in extra.items() if at == i}
            weights[i] = added(weights[i], parts)
        forms = rewritten.get_submodule(FORMS_ATTRIBUTE)
        assert isinstance(forms, nn.ModuleDict)
        with reparametrized(forms, _by_position(forms, extra, modules)):
            return Opened(rewritten).run(*weights)

    # trace once more: forms and deltas become plain operators, also where no parameter comes in.
    # The compiler's caches know a graph by its operators, and a process that takes a graph from
    # there must have defined them
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
