"""Which of a plan's entries the attentions of one graph are, and what each layer of it runs.

One graph may serve many layers (graph breaks, regional compile): for each of them, a call brings
other parameters. Names repeat from module to module, so a name alone proves nothing.

Soundness (identity): an entry reaches the attention it was made for and no other. Conditions:

1. Where the plan knows the model, an attention is the site whose projections' parameters stand at
   the graph's inputs, by their places in the model. A graph without all parameters of a site (its
   keys come from elsewhere) still has some of them, and none of another's.
2. Where it does not (a plan from a file, another copy of the model), an attention is the one site
   whose recorded weights are equal (``digest``), and whose name ends with the graph's own.
3. Without equal weights names decide, and only where the graph has exactly the plan's sites: then
   it is the graph of the whole model. (The entry still has to fit: ``Entry.check``.)
4. Where several sites fit (tied weights, a layer called twice, no parameters), they are taken in
   order if the graph has all of them; else only if their entries are equal in all that runs.
5. Nothing else is taken: the attention is declined aloud (``SHARED_GRAPH``); ``strict`` raises.
6. A site that changes is never passed over: where a call brings all its parameters, and no
   attention of the graph is the site, that is said; ``strict`` raises.
7. At every call the parameters that come are compared with those of the layer (``Dispatch``),
   unless the names of the whole model decided, which are the same for every call.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from attnpass.errors import PlanError
from attnpass.fingerprint import digest_weights
from attnpass.kernels.tile import Tiles
from attnpass.matching import Outline
from attnpass.plan import Plan, warn_or_raise
from attnpass.text import listed
from attnpass.torch_internals import FakeTensor

log = logging.getLogger("attnpass")

Names = dict[str, str]
"""For one layer: the graph's name of a site to the plan's."""

Identity = list[tuple[int, Callable[[], Tensor | None]]]
"""Input positions, each with what gives the parameter that stands there in a call of the layer."""

CURE = "give the model: attnpass.Plan.load(path).bind(model, *args)"


@dataclass(frozen=True)
class Layer:
    """One layer that a graph serves.

    Attributes:
        names: the graph's name of each rewritten site to the plan's.
        modules: the graph's name of each rewritten site to its module.
        deltas: input position to the site and the path of the weight that stands there, under
            which the plan has its delta.
        identity: input positions with the parameters by which a call of this layer is known.
        held: the graph was compiled while the plan held sums: it takes W + delta for W.
    """

    names: Names
    modules: dict[str, nn.Module]
    deltas: dict[int, tuple[str, str]]
    identity: Identity
    held: bool = False


@dataclass(frozen=True)
class Served:
    """The plan's name of every attention that a call brings.

    Attributes:
        names: the graph's name of a site to the plan's.
        unknown: the graph's names of sites that are none of the plan's.
        anyone: the names of the whole model decided, whatever parameters come.
    """

    names: Names
    unknown: list[str]
    anyone: bool = False


def served(graph: Outline, inputs: Sequence[Any], plan: Plan) -> Served:
    """Which sites of the plan the attentions of a graph are, for the inputs of one call.

    Where torch compiles the parts of a split graph (DDP), it gives stand-ins for the parameters:
    nothing is known then, and nothing unknown, until a call brings the parameters.
    """
    real = not _stand_ins(inputs[i] for _, at in graph.rows for i in at)
    found: Names = {}
    if real:
        found = _by_parameters(graph, inputs, plan) or _by_weights(graph, inputs, plan)
    anyone = not found
    found = found or _by_names(graph, plan)
    if not real and not found:
        return Served({}, [])
    found |= _without_parameters(graph, plan, found)
    unknown = [s.name for s in graph.sites if s.name not in found]
    return Served(found, unknown, anyone and bool(found))


def _stand_ins(parameters: Iterable[Any]) -> bool:
    """Whether parameters are not the model's own, but fake tensors of a trace."""
    return any(isinstance(x, FakeTensor) for x in parameters)


def others(graph: Outline, plan: Plan, names: Names) -> list[Names]:
    """Further layers that the same graph may serve: its sites' names below other modules.

    They say what to compile beforehand; which layer a call is, its parameters say.
    """
    own = [s.name for s in graph.sites]
    ends = [site.removesuffix(own[0]) for site in plan.sites if f".{site}".endswith(f".{own[0]}")]
    layers = [{name: prefix + name for name in own} for prefix in ends]
    # the model may be wrapped in another module (DDP), whose graph has longer names
    outer = [own[0].removesuffix(site) for site in plan.sites if own[0].endswith(f".{site}")]
    layers += [{name: name.removeprefix(prefix) for name in own} for prefix in outer]
    if own == ["root"]:
        layers = [{"root": site} for site in plan.sites]
    known = [x for x in layers if all(site in plan.sites for site in x.values())]
    return [x for x in known if x != names]


def _by_parameters(graph: Outline, inputs: Sequence[Any], plan: Plan) -> Names:
    """The sites that are known by the very parameters of a call (condition 1)."""
    bound = {site: [id(p) for p in plan.parameters_of(site)] for site in plan.sites}
    users: dict[int, list[str]] = {}
    for site, held in bound.items():
        for parameter in set(held):
            users.setdefault(parameter, []).append(site)

    def holding(name: str, own: list[int]) -> list[str]:
        """The sites with exactly these parameters; else those with these and others."""
        sites = [site for site in users.get(own[0], ()) if set(own) <= set(bound[site])]
        return [site for site in sites if bound[site] == own] or sites

    given = {site.name: [id(inputs[i]) for i in at] for site, at in graph.rows}
    return _paired(given, holding, plan)


def _by_weights(graph: Outline, inputs: Sequence[Any], plan: Plan) -> Names:
    """The sites whose recorded weights are those of a call (condition 2)."""
    recorded: dict[str, list[str]] = {}
    for site, entry in plan.sites.items():
        if entry.weights:
            recorded.setdefault(entry.weights, []).append(site)
    if not recorded:
        return {}
    digests = {
        site.name: [digest_weights(inputs[i] for i in at)] if at else [] for site, at in graph.rows
    }

    def equal(name: str, own: list[str]) -> list[str]:
        ends = f".{name.partition('#')[0]}"
        return [
            site
            for site in recorded.get(own[0], ())
            if ends == ".root" or f".{site.partition('#')[0]}".endswith(ends)
        ]

    return _paired(digests, equal, plan)


def _paired(
    given: Mapping[str, list[Any]], fitting: Callable[[str, list[Any]], list[str]], plan: Plan
) -> Names:
    """Every attention of a graph with its site, where one fits or all are there (condition 4)."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, own in given.items():
        if own:
            alike.setdefault(tuple(fitting(name, own)), []).append(name)
    found: Names = {}
    for sites, names in alike.items():
        if len(sites) == len(names):
            found |= dict(zip(names, sites, strict=True))
        elif sites and _alike(sites, plan):
            found |= dict.fromkeys(names, sites[0])
    return found


def _alike(sites: Sequence[str], plan: Plan) -> bool:
    """Whether the entries of sites are equal in all that runs."""

    def runs(site: str) -> tuple[Any, ...]:
        entry = plan.sites[site]
        values = [digest_weights([p]) for _, p in sorted(plan.values.get(site, {}).items())]
        return entry.form, sorted(entry.options.items(), key=str), entry.fits, values

    if any(plan.deltas.get(site) for site in sites):
        return len(sites) == 1
    return all(runs(site) == runs(sites[0]) for site in sites)


def _by_names(graph: Outline, plan: Plan) -> Names:
    """The sites by name, where the graph is that of the whole model (condition 3)."""
    own = [s.name for s in graph.sites]
    return {name: name for name in own} if set(own) == plan.sites.keys() else {}


def _without_parameters(graph: Outline, plan: Plan, found: Names) -> Names:
    """Attentions without parameters of their own, beside those that are known (condition 4)."""
    free = [site for site, at in graph.rows if not at and site.name not in found]
    rest = {n: e for n, e in plan.sites.items() if not e.fits.get("weights")}
    if not free:
        return {}
    names = {s.name: s.fits() for s in free}
    if names.keys() == rest.keys() and all(rest[n].fits == fits for n, fits in names.items()):
        return {name: name for name in names}
    first: dict[str, str | None] = {}
    for fits in names.values():
        if str(fits) not in first:
            fitting = [n for n, entry in rest.items() if entry.fits == fits]
            first[str(fits)] = fitting[0] if fitting and _alike(fitting, plan) else None
    return {name: site for name, fits in names.items() if (site := first[str(fits)]) is not None}


def refused(found: Served, plan: Plan, *, strict: bool) -> str:
    """Say that attentions are none of the plan's sites; the hint of their declines.

    Raises:
        PlanError: with ``strict``.
    """
    own = ", ".join(found.unknown)
    text = f"no site of the plan is known to be {own}; it stays as it is: {CURE}"
    absent = plan.absent(set(found.names.values()), "graph")[:1]
    warn_or_raise(PlanError("; ".join(map(str, (*absent, text)))), strict)
    return f"which layer of the plan this is cannot be told; {CURE}"


def refuse_missed(inputs: Sequence[Any], plan: Plan, names: Names, *, strict: bool) -> None:
    """Say which sites a call brings whole although no attention of its graph is one of them.

    Raises:
        PlanError: with ``strict``.
    """
    given = {id(x) for x in inputs if isinstance(x, Tensor)}
    own = {site: tuple(id(p) for p in plan.parameters_of(site)) for site in plan.sites}
    found = {own[site] for site in names.values()}
    missed = [
        site
        for site, entry in plan.sites.items()
        if entry.changes and own[site] and given.issuperset(own[site]) and own[site] not in found
    ]
    if missed:
        text = (
            f"expected the attention {listed(missed)} in a graph that takes its parameters, found"
            " none; it stays as it is: compiled_report().declined says why"
        )
        warn_or_raise(PlanError(text), strict)


def layer(
    graph: Outline,
    inputs: Sequence[Any],
    plan: Plan,
    names: Names,
    tiles: Tiles,
    *,
    strict: bool,
    anyone: bool = False,
    quiet: bool = False,
) -> Layer:
    """What one layer of the plan runs under this graph.

    Args:
        graph: with example ``inputs``. plan: the whole.
        names: the graph's names of sites to the plan's. tiles: measured launch parameters.
        strict: raise where an entry does not fit.
        anyone: every call is of this layer.
        quiet: the inputs are those of another layer, and this one may never come: say nothing.

    Raises:
        PlanError: with ``strict``, an entry that does not fit.
    """
    modules: dict[str, nn.Module] = {}
    deltas: dict[int, tuple[str, str]] = {}
    rewritten: Names = {}
    below: dict[tuple[str, str], tuple[dict[str, int], dict[str, Tensor]]] = {}
    for site, positions in graph.rows:
        own, parameters = site.name, [inputs[i] for i in positions]
        name = names.get(own)
        if name is None:
            continue
        moved = _moved(own, name)
        if moved not in below:  # mostly one for all sites
            below[moved] = _below(moved, graph, inputs)
        at, weights = below[moved]
        try:
            module = plan.module(
                replace(site, name=name),
                strict=strict or quiet,
                tiles=tiles,
                device=parameters[0].device if parameters else None,
                weights=weights,
            )
        except PlanError:
            if not quiet:
                raise
            continue
        if module is not None:
            # a site of the very same path is this one, although its weights are others
            if not quiet or (own == name and not _stand_ins(parameters)):
                plan.warn_if_weights_changed(name, parameters)
            modules[own], rewritten[own] = module, name
            deltas |= {at[path]: (name, path) for path in plan.deltas.get(name, {})}
    identity = [] if anyone else _identity(graph, inputs, plan, names)
    return Layer(rewritten, modules, deltas, identity)


def _below(
    moved: tuple[str, str], graph: Outline, inputs: Sequence[Any]
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The positions of a graph's weights, and the weights, by their paths in the whole model."""
    outer, prefix = moved
    at = {prefix + path.removeprefix(outer): i for i, path in enumerate(graph.paths) if path}
    return at, {path: inputs[i] for path, i in at.items()}


def _moved(own: str, name: str) -> tuple[str, str]:
    """What stands before the paths in the graph alone, and what in the whole model alone.

    ``own`` and ``name`` are those of one site, in the graph and in the model.
    """
    own, name = own.partition("#")[0], name.partition("#")[0]
    below = own == "root" and name != "root"
    if own.endswith(f".{name}"):  # in the graph, the model is inside another module
        return own.removesuffix(name), ""
    return "", f"{name}." if below else name.removesuffix(own)


def _identity(
    graph: Outline, inputs: Sequence[Any], plan: Plan, names: Mapping[str, str]
) -> Identity:
    """Input positions with the parameters that this layer has there."""
    found: Identity = []
    for own, at in graph.rows:
        site = names.get(own.name)
        places = plan.bindings.places_of(site) if site is not None else []
        paths = [graph.paths[i] for i in at]
        for i, path in zip(at, paths, strict=True):
            here = [p for p in places if p.now() is inputs[i]]
            below = [p for p in places if path and f".{p.path}".endswith(f".{path}")]
            if here or below:
                found.append((i, (here or below)[0].now))
            else:
                found.append((i, weakref.ref(inputs[i])))
    return found
