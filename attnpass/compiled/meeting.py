"""A layer that a compiled graph meets: its entries, its variant, its values.

Kept for as long as the compiled graph is; it holds no node of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnpass import report as reports
from attnpass.compiled.added import Values, added_values
from attnpass.compiled.dispatch import Run
from attnpass.compiled.inner import Compiled
from attnpass.compiled.layers import Layer, Names, layer, refuse_missed, refused, served
from attnpass.compiled.variant import signature
from attnpass.kernels.tile import Tiles
from attnpass.matching import Outline
from attnpass.plan import Plan
from attnpass.report import Report


@dataclass(frozen=True)
class Meeting:
    """What is needed to run a layer that comes through a graph.

    Attributes:
        graph: its attentions. plan: the whole. tiles: measured launch parameters.
        strict: raise where an entry does not fit or a layer is not known.
        eager: the graph runs as it is, so that every value keeps its own gradient.
        held: the plan holds sums while the graph is compiled.
        variants: compiled graphs by ``signature``.
    """

    graph: Outline
    plan: Plan
    tiles: Tiles
    strict: bool
    eager: bool
    held: bool
    variants: dict[tuple[Any, ...], Compiled] = field(default_factory=dict)

    def layer(
        self, names: Names, inputs: Sequence[Any], *, anyone: bool = False, quiet: bool = False
    ) -> Layer:
        """One layer under this graph; ``quiet``: one that may never come."""
        found = layer(
            *(self.graph, inputs, self.plan, names, self.tiles),
            strict=self.strict,
            anyone=anyone,
            quiet=quiet,
        )
        return replace(found, held=self.held)

    def run(self, one: Layer) -> Run:
        """A layer with its variant, which must be compiled; the report says that it runs."""
        forms = {name: self.plan.sites[name].form for name in one.names.values()}
        reports.record(Report(rewritten=forms))
        return self.trial(one)

    def trial(self, one: Layer) -> Run:
        """As ``run``, for a layer that may never come."""
        values = Values(list(added_values(self.plan, one).values()), trained=not self.eager)
        return Run(self.plan, one, self.variants[signature(self.plan, one)], values)

    def __call__(self, inputs: Sequence[Any]) -> Run | None:
        """The layer of a call that brings parameters not seen before; nothing is compiled now.

        Raises:
            PlanError: with ``strict``, attentions that are none of the plan's.
        """
        found = served(self.graph, inputs, self.plan)
        if not found.names:
            return None
        if found.unknown:
            refused(found, self.plan, strict=self.strict)
        refuse_missed(inputs, self.plan, found.names, strict=self.strict)
        one = self.layer(found.names, inputs)
        return self.run(one) if signature(self.plan, one) in self.variants else None
