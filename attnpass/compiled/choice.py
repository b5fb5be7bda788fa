"""The plan for one graph: the option ``plan``, one made of option ``form``, or a pinned one."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from attnpass.compiled.options import Options
from attnpass.errors import AttnpassError, PlanError
from attnpass.fingerprint import digest_weights
from attnpass.matching import MatchedGraph
from attnpass.plan import Plan, assign
from attnpass.report import Report

log = logging.getLogger("attnpass")


def pinned_plans(options: Options) -> list[Plan]:
    """The pinned plans of the database, none where there is no database."""
    from attnpass.store import pinned_plans as stored

    try:
        return stored(options.db)
    except AttnpassError as error:
        log.warning("pinned plans are not applied: %s", error)
        return []


def chosen_plan(
    graph: MatchedGraph, inputs: Sequence[Any], options: Options, report: Report
) -> Plan | None:
    """The plan for a graph; None where nothing applies. Sites left as they are go to ``report``.

    Raises:
        OptionError: a glob of the options matches no site, with ``strict``.
        PlanError: with ``strict``, an illegal site that is named exactly.
    """
    plan = options.plan
    if plan is None and options.form is not None:
        plan = _plan_of_one_form(graph, options.form, options, report)
    elif plan is None:
        plan = _pinned(graph, inputs, options)
    return plan


def _plan_of_one_form(graph: MatchedGraph, form: str, options: Options, report: Report) -> Plan:
    """A plan of one form at every site that the options select, with constants for parameters."""
    sites = [r.site for r in graph.regions]
    names = [s.name for s in sites]
    # a model has many graphs: a glob need match a site in one of them
    globs = [g for g in options.sites if options.strict or fnmatch.filter(names, g)]
    if options.sites and not globs:
        log.warning(
            "sites %s match none of %s; this graph runs unchanged",
            ", ".join(options.sites),
            ", ".join(names),
        )
        return Plan({})
    entries, declines = assign(
        sites, form, options.form_options, globs or None, strict=options.strict
    )
    report.declined += declines
    plan = Plan(entries)
    plan.round_trip = form == "softmax"
    return plan.constant()


def _pinned(graph: MatchedGraph, inputs: Sequence[Any], options: Options) -> Plan | None:
    """The pinned plan whose sites and weights are this graph's."""
    for plan in pinned_plans(options):
        entries = [plan.sites.get(r.site.name) for r in graph.regions]
        fit = [
            entry is not None and entry.fits == region.site.fits()
            for entry, region in zip(entries, graph.regions, strict=True)
        ]
        if not fit or not all(fit):
            continue
        digests = [digest_weights(own) for own in graph.parameters(inputs)]
        if digests == [entry.weights for entry in entries if entry is not None]:
            log.warning("applying pinned plan %s (attnpass unpin removes it)", plan.hash)
            return plan.frozen()
        log.warning(
            "pinned plan %s is of the same model with other weights; not applied", plan.hash
        )
    return None


def refuse_held(plan: Plan, inputs: Sequence[Any]) -> None:
    """Refuse to record gradients under a plan that holds sums of weights and deltas.

    Raises:
        PlanError: gradients are on, for weights or deltas.
    """
    if not plan.held or not torch.is_grad_enabled():
        return
    weights = [x for x in inputs if isinstance(x, nn.Parameter)]
    deltas = [p for own in plan.deltas.values() for d in own.values() for p in d.parameters()]
    if deltas and any(x.requires_grad for x in (*weights, *deltas)):
        raise PlanError(
            "expected calls without gradients while the plan holds sums of weights and deltas, got"
            " one with; call under torch.no_grad(), or plan.release() first"
        )


def warn_frozen(plan: Plan, inputs: Sequence[Any]) -> None:
    """Say that gradients are recorded for the model's weights, and none for its forms."""
    trains = torch.is_grad_enabled() and any(
        isinstance(x, nn.Parameter) and x.requires_grad for x in inputs
    )
    if trains and (not plan.trainable or any(not p.requires_grad for p in plan.parameters())):
        log.warning(
            "gradients are on, but the forms have no trainable parameters: to train them, give "
            "options={'plan': Plan.create(...)}; to infer, call under torch.no_grad()"
        )
