"""Which layers of a plan one graph serves, and what each of them runs.

One graph of a whole model serves one set of layers. A graph of a block (graph breaks, regional
compile) serves every layer of the plan with the same inner names; a call is told apart by the
parameters that it brings.

Soundness (identity): a layer's forms run only for calls of that layer. Conditions:

1. Where the plan knows the model, a layer is one whose projections' parameters all stand at the
   graph's inputs (``Dispatch`` compares them at every call).
2. A plan that does not know the model is applied only to a graph that has all of its sites by
   name; a graph of a block is declined (``SHARED_GRAPH``).
3. A graph of which the plan knows no parameter, of another copy of the model, is taken by the
   path alone, and only where it is the graph of the whole model.

Not covered: attentions without parameters, and a plan's entry whose name another module of the
graph has.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from attnpass.kernels.tile import Tiles
from attnpass.matching import MatchedGraph
from attnpass.plan import Delta, Plan, warn_or_raise
from attnpass.report import Report
from attnpass.site import Decline

log = logging.getLogger("attnpass")

Names = dict[str, str]
"""For one layer: the graph's name of a site to the plan's."""


@dataclass(frozen=True)
class Layer:
    """One layer that a graph serves.

    Attributes:
        forms: the plan's name of each rewritten site to its form.
        modules: the graph's name of each rewritten site to its module.
        deltas: input position to the delta of the weight that stands there.
        identity: input positions with the parameters by which a call of this layer is known.
    """

    forms: dict[str, str]
    modules: dict[str, nn.Module]
    deltas: dict[int, Delta]
    identity: list[tuple[int, weakref.ref[Tensor]]]


def served(
    graph: MatchedGraph, inputs: Sequence[Any], plan: Plan, report: Report, *, strict: bool
) -> list[Names]:
    """For every layer that this graph may serve: the graph's site names to the plan's.

    Raises:
        PlanError: with ``strict``, the plan names a site that this graph does not have.
    """
    own = {r.site.name: r.site.name for r in graph.regions}
    layers = [own] if all(name in plan.sites for name in own) else []
    if not plan.bindings:
        if layers:
            # one line for a graph: a plan of another model lacks many sites
            for error in plan.absent(own, "graph")[:1]:
                warn_or_raise(error, strict)
        else:
            _decline_shared(graph, report)
        return layers
    first = next(iter(own))
    for name in plan.sites:
        if name.endswith(f".{first}"):
            prefix = name[: len(name) - len(first)]
            layers.append({n: prefix + n for n in own})
        elif first == "root" and len(own) == 1 and name != first:
            layers.append({first: name})
    known = plan.bindings.parameter_ids()
    if not any(id(x) in known for row in graph.parameters(inputs) for x in row):
        # the plan was bound to another copy of the model: go by the path alone
        return layers[:1] if layers[:1] == [own] else []
    return [x for x in layers if all(n in plan.sites for n in x.values())]


def _decline_shared(graph: MatchedGraph, report: Report) -> None:
    """Decline a graph that does not say which layer of an unbound plan it is."""
    hint = (
        "the graph does not say which layer it is; give the model: "
        "attnpass.Plan.load(path).bind(model, *args)"
    )
    report.declined += [
        Decline("SHARED_GRAPH", r.site.name, r.site.source, hint) for r in graph.regions
    ]
    log.warning("%s: %s", ", ".join(r.site.name for r in graph.regions), hint)


def layer(
    graph: MatchedGraph,
    inputs: Sequence[Any],
    plan: Plan,
    names: Names,
    tiles: Tiles,
    *,
    strict: bool,
) -> Layer | None:
    """One layer of the plan under this graph; None where its parameters are not known.

    Raises:
        PlanError: with ``strict``, an entry that does not fit.
    """
    identity = _identity(graph, inputs, plan, names)
    if identity is None:
        return None
    modules: dict[str, nn.Module] = {}
    deltas: dict[int, Delta] = {}
    forms: dict[str, str] = {}
    for region, parameters in zip(graph.regions, graph.parameters(inputs), strict=True):
        own, name = region.site.name, names[region.site.name]
        at = _positions(graph, own, name)
        module = plan.module(
            replace(region.site, name=name),
            strict=strict,
            tiles=tiles,
            device=parameters[0].device if parameters else None,
            weights={path: inputs[i] for path, i in at.items()},
        )
        if module is not None:
            plan.warn_if_weights_changed(name, parameters)
            modules[own], forms[name] = module, plan.sites[name].form
            deltas |= {at[path]: d for path, d in plan.deltas.get(name, {}).items()}
    return Layer(forms, modules, deltas, identity)


def _positions(graph: MatchedGraph, own: str, name: str) -> dict[str, int]:
    """The inputs of a layer by their path in the whole model, from one of its sites' names."""
    below = own == "root" and name != "root"
    prefix = f"{name}." if below else name.removesuffix(own)
    return {prefix + path: i for i, path in enumerate(graph.paths) if path}


def _identity(
    graph: MatchedGraph, inputs: Sequence[Any], plan: Plan, names: Mapping[str, str]
) -> list[tuple[int, weakref.ref[Tensor]]] | None:
    """Input positions with the parameters that this layer has there; None where not known."""
    found: list[tuple[int, weakref.ref[Tensor]]] = []
    known = plan.bindings.parameter_ids()
    for region, positions in zip(graph.regions, graph.projections, strict=True):
        here = [inputs[i] for i in positions]
        bound = any(id(x) in known for x in here)
        values = plan.parameters_of(names[region.site.name]) if bound else here
        if len(values) != len(positions):
            return None
        found += [(i, weakref.ref(p)) for i, p in zip(positions, values, strict=True)]
    return found
