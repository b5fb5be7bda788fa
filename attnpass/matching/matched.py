"""One graph of Dynamo, normalised and matched: what capture and the compiler both start from.

A graph names its weights relative to the module that it was traced from. One graph may serve many
layers (graph breaks, regional compile), so a layer is known by the identity of the parameters that
stand at the graph's inputs, not by a name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from attnpass.graph import (
    check_normal_form,
    checked,
    dump,
    normalize,
    relative_path,
    weight_inputs,
)
from attnpass.matching.check import check_regions, marks
from attnpass.matching.handed import received
from attnpass.matching.region import Region
from attnpass.matching.verdicts import match
from attnpass.site import AttentionSite, Decline


@dataclass(frozen=True)
class Outline:
    """The attentions of a graph without its nodes, to be kept after it was compiled.

    A node holds fake tensors, and these hold on to the model's parameters.

    Attributes:
        sites: the attention found. projections, paths: as of ``MatchedGraph``.
    """

    sites: list[AttentionSite]
    projections: list[tuple[int, ...]]
    paths: list[str]

    @property
    def rows(self) -> list[tuple[AttentionSite, tuple[int, ...]]]:
        """Every site with the positions of its projections' parameters among the inputs."""
        return list(zip(self.sites, self.projections, strict=True))


@dataclass(frozen=True)
class MatchedGraph:
    """A graph in normal form with its verdicts, and where its weights are among the inputs.

    Attributes:
        normal: the normal form; its inputs are those of Dynamo's graph, in order.
        regions: the attention found. declined: the look-alikes, with reasons.
        projections: per region the positions of the inputs that are its projections' parameters.
        outputs: the same of its output projection.
        paths: per input its path below the module that was traced, ``""`` where it has none.
    """

    normal: fx.GraphModule
    regions: list[Region] = field(default_factory=list)
    declined: list[Decline] = field(default_factory=list)
    projections: list[tuple[int, ...]] = field(default_factory=list)
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, gm: fx.GraphModule, inputs: Sequence[Any], allow: Collection[str] = ()
    ) -> MatchedGraph:
        """The matched graph of what Dynamo gives a backend; called inside that backend.

        Args:
            gm: Dynamo's graph. inputs: its example inputs.
            allow: what the user accepts (``site.ALLOW``).

        Raises:
            NormalizeError: the graph cannot be traced again.
        """
        normal = normalize(gm, list(inputs))
        if checked():
            check_normal_form(gm, normal)
        dump("normal_form", normal)
        weights = weight_inputs(normal, inputs)
        found = match(normal.graph, weights, allow, received(gm, normal.graph, weights))
        if checked():
            check_regions(normal.graph, found.regions)
        dump("matched", normal, marks(found.regions))
        at = {node: i for i, node in enumerate(normal.graph.find_nodes(op="placeholder"))}
        return cls(
            normal,
            found.regions,
            found.declined,
            [tuple(at[n] for n in r.parameters) for r in found.regions],
            [tuple(at[n] for n in r.output) for r in found.regions],
            [relative_path(n) for n in at],
        )

    @classmethod
    def unread(cls, gm: fx.GraphModule, why: Decline) -> MatchedGraph:
        """A graph that stays as Dynamo made it, with the reason."""
        paths = [relative_path(n) for n in gm.graph.find_nodes(op="placeholder")]
        return cls(gm, declined=[why], paths=paths)

    @property
    def outline(self) -> Outline:
        """The same without nodes."""
        return Outline([r.site for r in self.regions], self.projections, self.paths)

    @property
    def identity(self) -> list[int]:
        """The positions of the inputs by which a layer is known: its regions' projections."""
        return sorted({i for at in self.projections for i in at})

    def parameters(self, inputs: Sequence[Any]) -> list[list[Any]]:
        """Per region its projections' parameters among the inputs of a call."""
        return [[inputs[i] for i in at] for at in self.projections]

    def prefix(self, inputs: Sequence[Any], known: Mapping[int, str]) -> str:
        """The path, in a whole model, of the module that this graph was traced from.

        ``known`` maps the id of each parameter of the model to its path; ``""`` where no
        projection of the graph is among them.
        """
        for i in self.identity:
            full, relative = known.get(id(inputs[i]), ""), self.paths[i]
            if relative and full.endswith(f".{relative}"):
                return full[: -len(relative) - 1]
        return ""
