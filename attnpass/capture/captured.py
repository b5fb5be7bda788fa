"""Capture a model once, then run it under any plan: switching a plan takes milliseconds.

Every captured graph sits behind a trampoline, so that Dynamo's guards and bytecode stay while the
graph that runs is exchanged. Graphs run eagerly, in plain operators: for accuracy, calibration and
distillation, not for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from attnpass.graph import NormalizeError, normalize, relative_path, weight_inputs
from attnpass.matching import Matches, Region, match
from attnpass.plan import Delta
from attnpass.rewrite import rewrite
from attnpass.site import AttentionSite, Decline

if TYPE_CHECKING:
    from attnpass.capture.capture import Capture


Chooser = Callable[[AttentionSite, Mapping[str, Tensor]], nn.Module | None]
"""What runs at a site, given its graph's weights by path; None leaves it as it is."""

Changes = Callable[[str], Mapping[str, Delta]]
"""What is added, at a site that is rewritten, to which weights of the model."""


@dataclass
class Layer:
    """One layer that a captured graph serves.

    Attributes:
        regions: the graph's regions, sites named by their path in the whole model.
        parameters: site name to its projection parameters.
        projections: site name to the paths of these and of the output projection's.
        active: what runs now.
        weights: the parameters among the inputs, by their path in the model.
        positions: where among the inputs they are.
        deltas: position to what is added there now.
    """

    regions: list[Region]
    parameters: dict[str, list[Any]]
    projections: dict[str, list[str]]
    active: Callable[..., Any]
    weights: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    deltas: dict[int, Delta] = field(default_factory=dict)

    def given(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs that ``active`` takes: weights with what is added to them."""
        return [self.deltas[i](x) if i in self.deltas else x for i, x in enumerate(inputs)]


class Graph:
    """One captured graph: its normal form, its verdicts, and what runs now for every layer.

    One graph may serve many layers (graph breaks, regional compile): a call is told apart by the
    identity of its parameters.
    """

    def __init__(self, gm: fx.GraphModule, inputs: list[Any], owner: Capture) -> None:
        """Normalise and match ``gm``; called inside a ``torch.compile`` backend."""
        self.matches = Matches()
        self.normal: fx.GraphModule = gm
        try:
            self.normal = normalize(gm, inputs)
            weights = weight_inputs(self.normal, inputs)
            self.matches = match(self.normal.graph, weights, owner.allow)
        except NormalizeError as error:
            self.matches.declined.append(Decline("HOP_UNSUPPORTED", hint=str(error)))
        placeholders = self.normal.graph.find_nodes(op="placeholder")
        at = {node: i for i, node in enumerate(placeholders)}
        self._own = [[at[n] for n in r.parameters] for r in self.matches.regions]
        self._output = [[at[n] for n in r.output] for r in self.matches.regions]
        self._relative = {
            at[n]: relative_path(n) for r in self.matches.regions for n in r.parameters
        }
        self.identity = sorted(self._relative)
        self._paths = [relative_path(n) for n in placeholders]
        self.owner = owner
        self.layers: dict[tuple[int, ...], Layer] = {}
        self.last: tuple[tuple[Any, ...], Any] | None = None

    def layer(self, inputs: Sequence[Any]) -> Layer:
        """The layer whose parameters are among ``inputs``; met for the first time, a new one."""
        key = tuple(id(inputs[i]) for i in self.identity)
        if key not in self.layers:
            prefix = self._prefix(inputs)
            regions, parameters, projections = [], {}, {}
            at = {
                path: i
                for i, x in enumerate(inputs)
                if (path := self.owner.path(x, ".".join(filter(None, (prefix, self._paths[i])))))
            }
            known = {i: path for path, i in at.items()}
            rows = zip(self.matches.regions, self._own, self._output, strict=True)
            for region, own, output in rows:
                given = [inputs[i] for i in own]
                name = self.owner.name(prefix, region.site, given)
                regions.append(replace(region, site=replace(region.site, name=name)))
                parameters[name] = given
                projections[name] = [known[i] for i in (*own, *output) if i in known]
            weights = {path: inputs[i] for path, i in at.items()}
            self.layers[key] = Layer(regions, parameters, projections, self.normal, weights, at)
            self.use(self.layers[key], self.owner.chosen, self.owner.changes)
        return self.layers[key]

    def _prefix(self, inputs: Sequence[Any]) -> str:
        """The path, in the whole model, of the module that this graph's paths start from."""
        for i in self.identity:
            full, relative = self.owner.paths.get(id(inputs[i]), ""), self._relative[i]
            if relative and full.endswith(f".{relative}"):
                return full[: -len(relative) - 1]
        return ""

    def use(self, layer: Layer, chosen: Chooser, changes: Changes) -> dict[str, nn.Module]:
        """Run the modules that ``chosen`` gives for a layer's own sites from now on."""
        found = {r.site.name: chosen(r.site, layer.weights) for r in layer.regions}
        modules = {name: module for name, module in found.items() if module is not None}
        layer.active = rewrite(self.normal, layer.regions, modules) if modules else self.normal
        layer.deltas = {
            layer.positions[path]: delta
            for name in modules
            for path, delta in changes(name).items()
        }
        return modules

    def __call__(self, *inputs: Any) -> Any:
        """The outputs of what runs now."""
        layer = self.layer(inputs)
        return layer.active(*(layer.given(inputs) if layer.deltas else inputs))
