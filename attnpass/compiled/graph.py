"""One graph on its way through ``torch.compile``: match, plan, layers, variants, dispatch."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from attnpass import report as reports
from attnpass.compiled.choice import chosen_plan, refuse_held, warn_frozen
from attnpass.compiled.dispatch import Dispatch, Unchanged
from attnpass.compiled.inductor import misread
from attnpass.compiled.inner import Compiled, compile_inner
from attnpass.compiled.layers import (
    Layer,
    Names,
    Served,
    others,
    refuse_missed,
    refused,
    served,
)
from attnpass.compiled.lossless import lossless
from attnpass.compiled.meeting import Meeting
from attnpass.compiled.options import Options
from attnpass.compiled.steady import keep_steady
from attnpass.compiled.variant import compile_variant, signature
from attnpass.environment import kernel_context
from attnpass.errors import AttnpassError
from attnpass.kernels.tile import Tiles
from attnpass.matching import MatchedGraph
from attnpass.plan import Plan
from attnpass.report import Report
from attnpass.site import Decline
from attnpass.torch_internals import FakeTensor

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
        self.tiles = self._tiles() if sites else {}
        self.kept = lossless(self.graph.regions, inputs, self.tiles)

    def compile(self) -> Compiled:
        """The callable that Dynamo runs from now on.

        Raises:
            OptionError: a glob that matches no site. PlanError: with ``strict``, an entry that
                does not fit.
        """
        # plan: which forms
        plan = chosen_plan(self.graph, self.inputs, self.options, self.report)
        if plan is None:
            return self._unchanged()
        if not self.graph.regions:
            log.warning("no attention found in a graph; it runs unchanged")
            self._steady({})
            refuse_missed(self.inputs, plan, {}, strict=self.options.strict)
            return self._unchanged(plan)
        warn_frozen(plan, self.inputs)
        refuse_held(plan, self.inputs)
        # layers: which of the plan's sites this graph serves
        outline = self.graph.outline
        found = served(outline, self.inputs, plan)
        eager = self.options.inner == "eager"
        strict, held = self.options.strict, bool(plan.held)
        meeting = Meeting(outline, plan, self.tiles, strict, eager, held)
        self._refuse(found, plan)
        refuse_missed(self.inputs, plan, found.names, strict=strict)
        whole = all(own == name for own, name in found.names.items())
        if found.names and whole and not found.unknown and not plan.bindings:
            # no error: the rest may be in other graphs of the model
            for absent in plan.absent(set(found.names.values()), "graph")[:1]:
                log.warning("%s", absent)
        rest = [] if found.anyone else others(outline, plan, found.names)
        layers = self._layers(found, rest, meeting)
        # where nothing is known yet, the calls will say which layer they are
        unsaid = not found.names and not found.unknown
        ran = layers[0].names if layers and (found.names or unsaid) else {}
        self._steady({own: plan.sites[name].form for own, name in ran.items()})
        later = any(plan.sites[site].changes for names in rest for site in names.values())
        if not unsaid and not later and not any(one.modules for one in layers):
            return self._unchanged(plan)
        self.report.plan = plan.hash
        changed = layers[0].modules if layers else {}
        self.report.rewritten = {name: "softmax" for name in self.kept if name not in changed}
        # variants: rewrite and compile, once for all layers that differ in values alone
        for one in layers:
            self._compile(one, meeting)
        trial = meeting.trial(layers[0]) if unsaid and layers else None
        out = Dispatch(self.original.forward, meeting, strict=strict, trial=trial)
        if found.names:
            out.layers.append(meeting.run(layers[0]))
        reports.record(self.report)
        log.info("%s; plan %s", self.report.summary, self.report.plan)
        return out.__call__

    def _steady(self, forms: Mapping[str, str]) -> None:
        """Say where an attention runs otherwise than in an earlier graph."""
        options = self.options
        chosen = (options.form, str(options.form_options), options.sites, id(options.plan))
        # a plan may give the layers of one function different forms; parameters tell them apart
        layer = frozenset(
            (path, id(self.inputs[i]) if options.form is None else 0)
            for i, path in enumerate(self.graph.paths)
            if path and isinstance(self.inputs[i], (nn.Parameter, FakeTensor))
        )
        keep_steady(self.graph, forms, chosen, layer, strict=options.strict)

    def _refuse(self, found: Served, plan: Plan) -> None:
        """Decline the attentions that are none of the plan's."""
        if not found.unknown:
            return
        hint = refused(found, plan, strict=self.options.strict)
        self.report.declined += [
            Decline("SHARED_GRAPH", r.site.name, r.site.source, hint)
            for r in self.graph.regions
            if r.site.name in found.unknown
        ]

    def _layers(self, found: Served, rest: list[Names], meeting: Meeting) -> list[Layer]:
        """The layer of this call, and the ``rest``, which later calls of the graph may bring."""
        own = [found.names] if found.names else []
        layers = [meeting.layer(names, self.inputs, anyone=found.anyone) for names in own]
        # of layers that do not come through this graph nothing is asked
        return layers + [meeting.layer(names, self.inputs, quiet=True) for names in rest]

    def _compile(self, one: Layer, meeting: Meeting) -> None:
        """Compile the variant of a layer, where no other layer has the same one."""
        key, variants = signature(meeting.plan, one), meeting.variants
        if key not in variants:
            variants[key] = self._variant(meeting.plan, one)

    def _variant(self, plan: Plan, one: Layer) -> Compiled:
        """The graph under a layer's forms, and exact softmax by the quicker way elsewhere."""
        inner = functools.partial(self._inner, modules={**self.kept, **one.modules})
        given = (self.original, self.graph, self.inputs)
        return compile_variant(*given, plan, one, self.kept, inner)

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

    def _unchanged(self, plan: Plan | None = None) -> Compiled:
        """The graph without a form, compiled; it says what ``plan`` should have changed in it."""
        self.report.rewritten = dict.fromkeys(self.kept, "softmax")
        compiled = self._variant(Plan({}), Layer({}, {}, {}, []))
        reports.record(self.report)
        known = [i for i, path in enumerate(self.graph.paths) if path]
        if plan is None or not plan.bindings or not known:
            return compiled
        refuse = functools.partial(refuse_missed, plan=plan, names={}, strict=self.options.strict)
        return Unchanged(compiled, known[0], self.inputs[known[0]], refuse).__call__

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
