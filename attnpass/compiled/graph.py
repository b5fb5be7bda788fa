"""One graph on its way through ``torch.compile``: match, plan, layers, variants, dispatch."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from attnpass import report as reports
from attnpass.compiled.choice import chosen_plan, warn_frozen
from attnpass.compiled.dispatch import Dispatch
from attnpass.compiled.inductor import misread
from attnpass.compiled.inner import Compiled, compile_inner
from attnpass.compiled.layers import Layer, layer, served
from attnpass.compiled.options import Options
from attnpass.compiled.variant import compile_variant, signature
from attnpass.environment import kernel_context
from attnpass.errors import AttnpassError
from attnpass.kernels.tile import Tiles
from attnpass.matching import MatchedGraph
from attnpass.report import Report

log = logging.getLogger("attnpass")


class GraphCompiler:
    """Compiles one graph of Dynamo under the plan that the options choose.

    Args:
        gm: Dynamo's graph. inputs: its example inputs. options: checked.

    Raises:
        NormalizeError: the graph cannot be traced again.
    """

    def __init__(self, gm: fx.GraphModule, inputs: list[Any], options: Options) -> None:
        self.original, self.inputs, self.options = gm, inputs, options
        # normalise and match
        self.graph = MatchedGraph.of(gm, inputs, options.allow)
        sites = [r.site for r in self.graph.regions]
        self.report = Report(sites, list(self.graph.declined), graphs=1)

    def compile(self) -> Compiled:
        """The callable that Dynamo runs from now on.

        Raises:
            OptionError: a glob that matches no site. PlanError: with ``strict``, an entry that
                does not fit.
        """
        strict = self.options.strict
        # plan: which forms
        plan = chosen_plan(self.graph, self.inputs, self.options, self.report)
        if plan is None:
            return self._unchanged()
        if not self.graph.regions:
            log.warning("no attention found in a graph; it runs unchanged")
            return self._unchanged()
        warn_frozen(plan, self.inputs)
        # layers: which of the plan's sites this graph serves
        layers = served(self.graph, self.inputs, plan, self.report, strict=strict)
        if not layers:
            return self._unchanged()
        tiles = self._tiles()
        found = [
            layer(self.graph, self.inputs, plan, names, tiles, strict=strict) for names in layers
        ]
        self.report.plan = plan.hash
        # variants: rewrite and compile, once for all layers that differ in values alone
        out = self._dispatch([x for x in found if x is not None])
        reports.record(self.report)
        log.info("%s; plan %s", self.report.summary, plan.hash)
        return out.__call__

    def _dispatch(self, layers: list[Layer]) -> Dispatch:
        """Every layer with its compiled variant."""
        variants: dict[tuple[Any, ...], Compiled] = {}
        everywhere = self.options.form is not None and not self.options.sites
        out = Dispatch(self.original.forward, checked=not everywhere)
        for one in layers:
            key = signature(one)
            if key not in variants:
                inner = functools.partial(self._inner, modules=one.modules)
                variants[key] = compile_variant(self.original, self.graph, self.inputs, one, inner)
            out.add(one, variants[key])
            self.report.rewritten |= one.forms
        return out

    def _tiles(self) -> Tiles:
        """Launch parameters measured on this device; those of the plan where there are none."""
        from attnpass.store import measured_tiles

        cuda = any(isinstance(x, Tensor) and x.is_cuda for x in self.inputs)
        context = kernel_context("cuda" if cuda else "cpu")
        carried = {} if self.options.plan is None else self.options.plan.tiles_for(context)
        try:
            return {**carried, **measured_tiles(self.options.db, context)}
        except AttnpassError as error:
            log.warning("measured tiles are not used: %s", error)
            return carried

    def _unchanged(self) -> Compiled:
        """The original graph, compiled."""
        compiled = self._inner(self.original, self.inputs, {})
        reports.record(self.report)
        return compiled

    def _inner(
        self, gm: fx.GraphModule, inputs: list[Any], modules: Mapping[str, nn.Module]
    ) -> Compiled:
        """Hand on to the inner compiler, which must not misread what is left of softmax."""
        wrong = []
        if self.options.inner == "inductor":
            gone = [r.anchor for r in self.graph.regions if r.site.name in modules]
            wrong = list(misread(self.graph.normal.graph, gone))
        self.report.misread += [d for d in wrong if d not in self.report.misread]
        return compile_inner(gm, inputs, self.options, matcher=not wrong)
