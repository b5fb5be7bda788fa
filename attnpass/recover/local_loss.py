"""The loss of the local stage: every converted site for itself, fed by the original model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from attnpass.batch import Batch
from attnpass.capture import Capture, CapturedGraph, Layer, Seen, watched
from attnpass.matching import Region
from attnpass.plan import Delta, Plan
from attnpass.recover.distances import relative_error
from attnpass.recover.objective import floating_dtypes
from attnpass.recover.padding import padding_masks, token_rows
from attnpass.recover.units import UnitKey, trained_unit
from attnpass.rewrite import Branch, branch


class _SiteBranch(NamedTuple):
    """A site's part of the converted graph, and per value that it reads the delta added to it."""

    branch: Branch
    deltas: list[Delta | None]


class LocalLoss:
    """Relative errors of the block outputs of every converted site, of several plans at once.

    One run of the original model serves all plans: a site is fed by the original's activations,
    whatever runs at the other sites.

    Args:
        capture: of the original model, under no plan.
        plans: by label, their deltas in place.

    Attributes:
        name, share, units, dtypes, recompute: see ``Objective``. A unit is one site of one plan.
    """

    name, share = "local", 1.0
    recompute = None

    def __init__(self, capture: Capture, plans: Mapping[str, Plan]) -> None:
        self.capture, self.plans = capture, plans
        self.dtypes = floating_dtypes(capture.model)
        weights = {p: w for own in capture.projections().values() for p, w in own.items()}
        names = [s.name for s in capture.sites]
        units = {
            (label, site): trained_unit(plan, [site], weights)
            for label, plan in plans.items()
            for site in names
            if site in plan.sites and plan.sites[site].form != "softmax"
        }
        self.units = {key: unit for key, unit in units.items() if unit.trained}
        self._branches: dict[tuple[int, str, str], _SiteBranch] = {}

    def losses(self, batch: Batch) -> Iterator[tuple[UnitKey, Tensor]]:
        """Per unit the relative squared error of its block output, one after the other.

        A site that runs several times comes several times.
        """
        with torch.no_grad():
            _, layers = watched(self.capture, batch, self._nodes_needed)
        for graph, layer, values in layers:
            for region, label in self._trained(layer):
                yield (label, region.site.name), self._loss(graph, layer, region, label, values)

    def _trained(self, layer: Layer) -> Iterator[tuple[Region, str]]:
        """The regions of a layer that learn, with the label of every plan in which they do."""
        for region in layer.regions:
            for label in self.plans:
                if (label, region.site.name) in self.units:
                    yield region, label

    def _nodes_needed(self, graph: CapturedGraph, layer: Layer) -> set[str]:
        """The nodes of the original graph that the branches read, and those they stand for."""
        found = set()
        for region, label in self._trained(layer):
            made = self._branch(graph, layer, region, label).branch
            found |= {n.name for n in (*made.reads, made.target)}
        return found

    def _branch(
        self, graph: CapturedGraph, layer: Layer, region: Region, label: str
    ) -> _SiteBranch:
        """The branch of a site under a plan, made when it is first needed."""
        key = (id(layer), region.site.name, label)
        if key not in self._branches:
            plan = self.plans[label]
            module = plan.module(region.site, strict=True, weights=layer.weights)
            assert module is not None
            inputs = graph.normal.graph.find_nodes(op="placeholder")
            deltas = {
                inputs[layer.positions[path]]: delta
                for path, delta in plan.deltas.get(region.site.name, {}).items()
            }
            made = branch(graph.normal, region, module, list(deltas))
            self._branches[key] = _SiteBranch(made, [deltas.get(n) for n in made.reads])
        return self._branches[key]

    def _loss(
        self, graph: CapturedGraph, layer: Layer, region: Region, label: str, values: Seen
    ) -> Tensor:
        """The relative error of one block output, padding left out of self-attention."""
        made, deltas = self._branch(graph, layer, region, label)
        inputs = [
            values[node.name] if delta is None else delta.add(values[node.name])
            for node, delta in zip(made.reads, deltas, strict=True)
        ]
        got, keep = made.graph(*inputs)
        masks = [keep] if keep is not None and region.site.kind == "self" else []
        rows = token_rows(padding_masks(masks), got)
        return relative_error(got, values[made.target.name], rows)
