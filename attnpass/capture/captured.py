"""One captured graph, with the callable that runs now for each layer that the graph serves.

One graph may serve many layers (graph breaks, regional compile): a call is told apart by the
identity of its parameters.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from attnpass.capture.names import SiteNames
from attnpass.capture.shared import Given, Shared
from attnpass.graph import NormalizeError
from attnpass.matching import MatchedGraph, Region, hand, outgoing
from attnpass.plan import Delta
from attnpass.rewrite import FORMS_ATTRIBUTE, rewrite
from attnpass.site import AttentionSite, Decline

_numbers = itertools.count()

Chooser = Callable[[AttentionSite, Mapping[str, Tensor]], nn.Module | None]
"""The module that runs at a site, given its graph's weights by path; None leaves it as it is."""

Changes = Callable[[str], Mapping[str, Delta]]
"""The deltas of the weights, by path, of a site that is rewritten."""


@dataclass
class Choice:
    """What runs at every site of a capture, also in graphs and layers that are met later."""

    modules: Chooser = lambda site, weights: None
    changes: Changes = lambda name: {}
    content: Callable[[str], Hashable] = lambda name: object()
    """What a site runs and what its weights become, as something to compare."""


@dataclass
class Layer:
    """One layer that a captured graph serves.

    Attributes:
        regions: the graph's regions, sites named by their path in the whole model.
        parameters: site name to its projection parameters.
        projections: site name to the paths of these and of the output projection's.
        make: makes the callable that runs from now on, when it is first called.
        weights: the parameters among the inputs, by their path in the model.
        positions: where among the inputs they are.
        deltas: position to the delta that is added there now.
        owners: position to the site that the delta belongs to.
        contents: what sites run and add to weights, to compare it; filled when asked for.
    """

    regions: list[Region]
    parameters: dict[str, list[Any]]
    projections: dict[str, list[str]]
    make: Callable[[], Callable[..., Any]]
    weights: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    deltas: dict[int, Delta] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    contents: dict[str, Hashable] = field(default_factory=dict)
    _made: Callable[..., Any] | None = None

    @property
    def active(self) -> Callable[..., Any]:
        """The callable that runs now."""
        if self._made is None:
            self._made = self.make()
        return self._made

    @active.setter
    def active(self, run: Callable[..., Any]) -> None:
        self._made = run

    def with_deltas(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs that ``active`` takes: weights with their deltas added."""
        return [self.deltas[i](x) if i in self.deltas else x for i, x in enumerate(inputs)]


class CapturedGraph:
    """One graph behind a trampoline: its normal form, its verdicts, its layers.

    Args:
        gm: Dynamo's graph. inputs: its example inputs; both as a backend is given them.
        names: of the model's sites. choice: what runs now. allow: what the caller accepts.

    Attributes:
        matched: the graph with its verdicts.
        layers: the layers met so far, by the identity of their parameters.
        last: inputs and outputs of the last call, where the capture records.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: list[Any],
        names: SiteNames,
        choice: Choice,
        allow: Sequence[str],
    ) -> None:
        try:
            self.matched = MatchedGraph.of(gm, inputs, allow)
        except NormalizeError as error:
            self.matched = MatchedGraph.unread(gm, Decline("HOP_UNSUPPORTED", hint=str(error)))
        self.outgoing = outgoing(gm, inputs)
        self.names, self.choice = names, choice
        self.layers: dict[tuple[int, ...], Layer] = {}
        self.last: tuple[tuple[Any, ...], Any] | None = None
        self.number = next(_numbers)

    @property
    def normal(self) -> fx.GraphModule:
        """The normal form; Dynamo's own graph where it cannot be normalised."""
        return self.matched.normal

    @property
    def placeholders(self) -> list[Any]:
        """The fake values of the inputs."""
        return [n.meta.get("val") for n in self.normal.graph.find_nodes(op="placeholder")]

    def close(self) -> None:
        """Forget all nodes and what was recorded."""
        self.layers.clear()
        self.last = None
        empty = fx.GraphModule({}, fx.Graph())
        self.matched = MatchedGraph(empty)

    def layer(self, inputs: Sequence[Any]) -> Layer:
        """The layer whose parameters are among ``inputs``; met for the first time, a new one."""
        key = tuple(id(inputs[i]) for i in self.matched.identity)
        if key not in self.layers:
            self.layers[key] = self._met(inputs)
            self.use(self.layers[key])
        return self.layers[key]

    def _met(self, inputs: Sequence[Any]) -> Layer:
        """A layer that was not met before, its sites named."""
        graph, places = self.matched, self.names.places
        prefix = graph.prefix(inputs, {at: place.path for at, place in places.items()})
        called = [".".join(filter(None, (prefix, path))) for path in graph.paths]
        paths = [
            self.names.weight(x, name, places) for x, name in zip(inputs, called, strict=True)
        ]
        positions = {path: i for i, path in enumerate(paths) if path}
        found = Layer([], {}, {}, lambda: self.normal, positions=positions)
        rows = zip(graph.regions, graph.projections, graph.outputs, strict=True)
        times: Counter[Any] = Counter()
        for region, own, output in rows:
            parameters = [inputs[i] for i in own]
            same = (region.site.name.partition("#")[0], region.site.source, own)
            name = self.names.site(prefix, region.site, parameters, places, times[same])
            times[same] += 1
            found.regions.append(replace(region, site=replace(region.site, name=name)))
            found.parameters[name] = parameters
            found.projections[name] = [paths[i] for i in (*own, *output) if paths[i]]
        found.weights = {path: inputs[i] for path, i in positions.items()}
        return found

    def use(self, layer: Layer) -> dict[str, nn.Module]:
        """Run what the choice gives for a layer's own sites from now on; the modules by name."""
        found = {r.site.name: self.choice.modules(r.site, layer.weights) for r in layer.regions}
        modules = {name: module for name, module in found.items() if module is not None}
        layer.make, layer._made = partial(self._rewritten, layer, modules), None
        layer.deltas, layer.owners, layer.contents = {}, {}, {}
        for name in modules:
            for path, delta in self.choice.changes(name).items():
                layer.deltas[layer.positions[path]] = delta
                layer.owners[layer.positions[path]] = name
        return modules

    def _rewritten(self, layer: Layer, modules: dict[str, nn.Module]) -> fx.GraphModule:
        return rewrite(self.normal, layer.regions, modules) if modules else self.normal

    def __call__(self, *inputs: Any, shared: Shared | None = None) -> Any:
        """The outputs of what runs now. ``shared``: what earlier runs computed."""
        layer = self.layer(inputs)
        given = layer.with_deltas(inputs)
        active = layer.active
        if shared is None or not layer.regions or not isinstance(active, fx.GraphModule):
            results = active(*given)
        else:
            results = shared.run(active, self._given(layer, inputs, given))
        hand(results, self.outgoing)
        return results

    def _given(self, layer: Layer, inputs: Sequence[Any], changed: Sequence[Any]) -> Given:
        """What runs now is run with: inputs and contents, to compare them with earlier runs."""
        names = [region.site.name for region in layer.regions]
        for name in names:
            # what a form is made of is its plan's, and this graph's: another may have other masks
            layer.contents.setdefault(name, (self.number, self.choice.content(name)))
        forms = {f"{FORMS_ATTRIBUTE}.{i}": layer.contents[name] for i, name in enumerate(names)}
        deltas = {i: layer.contents[name] for i, name in layer.owners.items()}
        return Given(inputs, changed, {*layer.positions.values()}, deltas, forms)
