"""The ``torch.compile`` entry: normalise, match, plan, rewrite, hand to the inner compiler.

Dynamo calls the backend once per graph. One graph may serve many layers (graph breaks, regional
compile), so what runs is chosen at every call by the identity of the layer's parameters.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from attnpass import report as reports
from attnpass.compiled.dispatch import Compiled, _Dispatch, _values
from attnpass.compiled.inductor import misread
from attnpass.compiled.options import Options
from attnpass.compiled.variant import _by_position, _signature
from attnpass.environment import kernel_context
from attnpass.errors import AttnpassError, PlanError
from attnpass.fingerprint import digest_weights
from attnpass.graph import Opened, normalize, relative_path, retrace, unfold, weight_inputs
from attnpass.kernels.tile import Tiles
from attnpass.matching import Matches, Region, match
from attnpass.plan import Delta, Plan, assign
from attnpass.report import Report
from attnpass.rewrite import FORMS_ATTRIBUTE, rewrite
from attnpass.site import Decline
from attnpass.torch_internals import mark_static, reparametrized

log = logging.getLogger("attnpass")


def _pins(options: Options) -> list[Plan]:
    """The pinned plans of the database, none where there is no database."""
    from attnpass.store import pinned_plans

    try:
        return pinned_plans(options.db)
    except AttnpassError as error:
        log.warning("pinned plans are not applied: %s", error)
        return []


class _Graph:
    """One graph on its way through the pass."""

    def __init__(self, gm: fx.GraphModule, inputs: list[Any], options: Options) -> None:
        self.original, self.inputs, self.options = gm, inputs, options
        self.normal = normalize(gm, list(inputs))
        weights = weight_inputs(self.normal, inputs)
        self.matches: Matches = match(self.normal.graph, weights, options.allow)
        placeholders = self.normal.graph.find_nodes(op="placeholder")
        at = {node: i for i, node in enumerate(placeholders)}
        self.positions = [[at[n] for n in r.parameters] for r in self.regions]
        self.paths = [relative_path(n) for n in placeholders]
        self.report = Report([r.site for r in self.regions], list(self.matches.declined), graphs=1)

    @property
    def regions(self) -> list[Region]:
        return self.matches.regions

    @functools.cached_property
    def tiles(self) -> Tiles:
        """Launch parameters measured on this device; those of the plan where there are none."""
        cuda = any(isinstance(x, Tensor) and x.is_cuda for x in self.inputs)
        context = kernel_context("cuda" if cuda else "cpu")
        given = {} if self.options.plan is None else self.options.plan.tiles_for(context)
        from attnpass.store import measured_tiles

        try:
            return {**given, **measured_tiles(self.options.db, context)}
        except AttnpassError as error:
            log.warning("measured tiles are not used: %s", error)
            return given

    def compile(self) -> Compiled:
        """The callable that Dynamo runs from now on."""
        plan = self.options.plan or (self._bare() if self.options.form else self._pinned())
        if plan is None:
            return self._unchanged()
        if not self.regions:
            log.warning("no attention found in a graph; it runs unchanged")
            return self._unchanged()
        self._warn_frozen(plan)
        layers = self._layers(plan)
        if not layers:
            return self._unchanged()
        variants: dict[tuple[Any, ...], Compiled] = {}
        checked = self.options.form is None or bool(self.options.sites)
        out = _Dispatch(self.original.forward, checked)
        for names in layers:
            identity = self._parameters(plan, names)
            if identity is None:
                continue
            modules, deltas = self._modules(plan, names)
            key = (
                *((m, _signature(modules[m])) for m in sorted(modules)),
                *((i, _signature(d)) for i, d in sorted(deltas.items())),
            )
            if key not in variants:
                variants[key] = self._variant(modules, deltas)
            out.add(variants[key], modules, deltas, identity)
            forms = {n: plan.sites[n].form for m, n in names.items() if m in modules}
            self.report.rewritten |= forms
        self.report.plan = plan.hash
        reports.record(self.report)
        log.info("%s; plan %s", self.report.summary, plan.hash)
        return out.callable()

    def _unchanged(self) -> Compiled:
        compiled = self._inner(self.original, self.inputs, {})
        reports.record(self.report)
        return compiled

    def _inner(
        self, gm: fx.GraphModule, inputs: list[Any], modules: Mapping[str, nn.Module]
    ) -> Compiled:
        """Hand on to the inner compiler, which must not misread what is left of softmax."""
        gone = [r.anchor for r in self.regions if r.site.name in modules]
        wrong = list(misread(self.normal.graph, gone)) if self.options.inner == "inductor" else []
        self.report.misread += [d for d in wrong if d not in self.report.misread]
        return self.options.compile(gm, inputs, matcher=not wrong)

    def _bare(self) -> Plan:
        """A plan of one form, constants instead of parameters."""
        assert self.options.form is not None
        sites = [r.site for r in self.regions]
        globs = [g for g in self.options.sites if fnmatch.filter([s.name for s in sites], g)]
        if self.options.strict:
            globs = list(self.options.sites)
        if self.options.sites and not globs:
            log.warning(
                "sites %s match none of %s; this graph runs unchanged",
                ", ".join(self.options.sites),
                ", ".join(s.name for s in sites),
            )
            return Plan({})
        entries, declines = assign(
            sites,
            self.options.form,
            self.options.form_options,
            globs or None,
            strict=self.options.strict,
        )
        self.report.declined += declines
        plan = Plan(entries)
        plan.round_trip = self.options.form == "softmax"
        return plan.constant()

    def _pinned(self) -> Plan | None:
        """The pinned plan whose sites and weights are this graph's."""
        for plan in _pins(self.options):
            same = all(
                (entry := plan.sites.get(r.site.name)) is not None and entry.fits == r.site.fits()
                for r in self.regions
            )
            if not self.regions or not same:
                continue
            digests = [digest_weights(self.inputs[i] for i in at) for at in self.positions]
            if all(
                plan.sites[r.site.name].weights == d
                for r, d in zip(self.regions, digests, strict=True)
            ):
                log.warning("applying pinned plan %s (attnpass unpin removes it)", plan.hash)
                return plan.frozen()
            log.warning(
                "pinned plan %s is of the same model with other weights; not applied", plan.hash
            )
        return None

    def _warn_frozen(self, plan: Plan) -> None:
        trains = torch.is_grad_enabled() and any(
            isinstance(x, nn.Parameter) and x.requires_grad for x in self.inputs
        )
        if trains and (not plan.trainable or any(not p.requires_grad for p in plan.parameters())):
            log.warning(
                "the forms' parameters are frozen while the model trains; "
                "Plan.create(...) and options={'plan': plan} make them trainable"
            )

    def _layers(self, plan: Plan) -> list[dict[str, str]]:
        """For every layer that this graph may serve: the graph's site name to the plan's.

        One graph of a whole model serves one. A graph of a block whose parameters the plan knows
        serves every layer of the plan with the same inner names.
        """
        own = {r.site.name: r.site.name for r in self.regions}
        layers = [own] if all(name in plan.sites for name in own) else []
        if not plan.owners:
            if layers:
                self._missing(plan)
            else:
                self._shared(own)
            return layers
        first = next(iter(own))
        for name in plan.sites:
            if name.endswith(f".{first}"):
                prefix = name[: len(name) - len(first)]
                layers.append({n: prefix + n for n in own})
            elif first == "root" and len(own) == 1 and name != first:
                layers.append({first: name})
        known = plan.known()
        if not any(id(self.inputs[i]) in known for at in self.positions for i in at):
            # the plan was bound to another copy of the model: go by the path alone
            return layers[:1] if layers[:1] == [own] else []
        return [x for x in layers if all(n in plan.sites for n in x.values())]

    def _missing(self, plan: Plan) -> None:
        """Sites of an unbound plan that this graph does not have, said or raised."""
        names = {r.site.name for r in self.regions}
        lost = [n for n, e in plan.sites.items() if e.changes and n not in names]
        if lost:
            error = PlanError(
                f"expected the plan's site {lost[0]} in the graph, found none;"
                " was the plan made for another model?"
            )
            if self.options.strict:
                raise error
            log.warning("%s", error)

    def _shared(self, own: Mapping[str, str]) -> None:
        hint = (
            "the graph does not say which layer it is; give the model: "
            "attnpass.Plan.load(path).bind(model, *args)"
        )
        self.report.declined += [
            Decline("SHARED_GRAPH", r.site.name, r.site.source, hint) for r in self.regions
        ]
        log.warning("%s: %s", ", ".join(own), hint)

    def _modules(
        self, plan: Plan, names: dict[str, str]
    ) -> tuple[dict[str, nn.Module], dict[int, Delta]]:
        """The graph's site names to the modules of one layer, and what is added to which input."""
        found: dict[str, nn.Module] = {}
        deltas: dict[int, Delta] = {}
        for region, positions in zip(self.regions, self.positions, strict=True):
            own, name = region.site.name, names[region.site.name]
            below = own == "root" and name != "root"
            prefix = f"{name}." if below else name.removesuffix(own)
            at = {prefix + path: i for i, path in enumerate(self.paths) if path}
            device = self.inputs[positions[0]].device if positions else None
            module = plan.module(
                replace(region.site, name=name),
                strict=self.options.strict,
                tiles=self.tiles,
                device=device,
                weights={path: self.inputs[i] for path, i in at.items()},
            )
            if module is not None:
                plan.meet(name, (self.inputs[i] for i in positions))
                found[own] = module
                deltas |= {at[path]: d for path, d in plan.deltas.get(name, {}).items()}
        return found, deltas

    def _parameters(self, plan: Plan, names: dict[str, str]) -> list[tuple[int, Any]] | None:
        """Input positions with weak references to the parameters that this layer has there.

        None where the layer's parameters are not known.
        """
        found = []
        known = plan.known()
        for region, positions in zip(self.regions, self.positions, strict=True):
            name = names[region.site.name]
            here = [self.inputs[i] for i in positions]
            bound = any(id(x) in known for x in here)
            values = plan.parameters_of(name) if bound else here
            if len(values) != len(positions):
                return None
            found += [(i, weakref.ref(p)) for i, p in zip(positions, values, strict=True)]
        return found

    def _variant(self, modules: dict[str, nn.Module], deltas: dict[int, Delta]) -> Compiled:
        """The graph with ``modules``, compiled; takes the inputs and then their parameters.

        Where gradients are on, ``deltas`` are added to the inputs inside, and their parameters
        come last; else the inputs are taken with what is added to them.
        """
        if not modules:
            return self._inner(self.original, self.inputs, modules)
        gm = rewrite(self.normal, self.regions, modules)
        inside = deltas if torch.is_grad_enabled() else {}
        values = _values(modules, inside)
        mark_static(list(values.values()))

        def run(*inputs: Any) -> Any:
            given = dict(zip(values, inputs[len(self.inputs) :], strict=True))
            forms = gm.get_submodule(FORMS_ATTRIBUTE)
            own = _by_position(gm, given, modules)
            weights = list(inputs[: len(self.inputs)])
            for i, delta in inside.items():
                parts = {name: x for (at, name), x in given.items() if at == i}
                with reparametrized(delta, parts):
                    weights[i] = delta.add(weights[i])
            with reparametrized(forms, own):
                return Opened(gm).run(*weights)

        everything = [*self.inputs, *values.values()]
        traced = retrace(run, self.original, everything)
        return self._inner(unfold(traced), everything, modules)
