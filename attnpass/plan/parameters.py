"""A plan's live parameters: the forms' parameters and the weight deltas, put into modules.

The functions keep the parameter objects, so that an optimiser that holds one goes on training the
model that runs. A form's parameters are shared with the module that is built for its site; a
device change writes ``parameter.data``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.errors import PlanError
from attnpass.plan.delta import Delta
from attnpass.plan.entry import Entry
from attnpass.site import AttentionSite

log = logging.getLogger("attnpass")

Values = dict[str, dict[str, nn.Parameter]]
"""Site name -> the parameters of the site's form, by name."""

Deltas = dict[str, dict[str, Delta]]
"""Site name -> the deltas of the site's weights, by the weight's path in the model."""


def add_starting_values(
    values: Values, entries: Mapping[str, Entry], sites: Iterable[AttentionSite]
) -> None:
    """Put the starting parameters of every entry into ``values``, where it has none yet."""
    for site in sites:
        entry = entries.get(site.name)
        if entry is not None and entry.form != "softmax" and site.name not in values:
            module = forms.build(entry.form, site, entry.options)
            values[site.name] = dict(module.named_parameters())


def share(
    values: dict[str, nn.Parameter], module: nn.Module, site: str, *, trainable: bool
) -> None:
    """Replace the parameters of a site's module by ``values``.

    Where ``values`` is empty it gets the module's own; a parameter that the module lacks and that
    is 0 throughout is ignored with a warning.

    Raises:
        PlanError: a parameter is missing, of another shape, or one that the module lacks and that
            is not 0, as the shift of keys where a graph shows the logits alone.
    """
    own = dict(module.named_parameters())
    missing = sorted(set(own) - set(values))
    if values and missing:
        raise PlanError(f"expected all parameters of {site}, got none for {', '.join(missing)}")
    extra = sorted(set(values) - set(own))
    if extra:
        names = ", ".join(extra)
        if any(bool(values[name].detach().count_nonzero()) for name in extra):
            raise PlanError(
                f"expected parameters of {site} that its form has here, got also {names}, not 0"
            )
        log.warning("%s: parameters %s are not of this form and are ignored", site, names)
    for name, start in own.items():
        if name not in values:
            start.requires_grad_(trainable)
            values[name] = start
        elif values[name].shape != start.shape:
            raise PlanError(
                f"expected {site}.{name} of shape {tuple(start.shape)}, "
                f"got {tuple(values[name].shape)}"
            )
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, values[name])


def check_deltas(deltas: Mapping[str, Delta], weights: Mapping[str, Tensor]) -> None:
    """Check that ``weights`` holds every changed weight in the right shape.

    Raises:
        PlanError: a weight is missing or of another shape.
    """
    for path, delta in deltas.items():
        weight = weights.get(path)
        if weight is None or not delta.fits(weight):
            got = "none" if weight is None else f"shape {tuple(weight.shape)}"
            raise PlanError(f"expected the weight {path} that the plan changes, got {got}")


def move(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """Bring parameters and their gradients to a device; the parameter objects stay."""
    for parameter in parameters:
        if parameter.device != device:
            parameter.data = parameter.data.to(device)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to(device)


def parameters_in(values: Values, deltas: Deltas) -> Iterator[nn.Parameter]:
    """The forms' parameters, then the deltas'."""
    for own in values.values():
        yield from own.values()
    for changes in deltas.values():
        for delta in changes.values():
            yield from delta.parameters()


def as_module(values: Values, deltas: Deltas) -> nn.ModuleDict:
    """All parameters below one module; dots in site names and paths are written as slashes."""
    sites: dict[str, nn.Module] = {
        _slashed(site): nn.ParameterDict({_slashed(name): p for name, p in own.items()})
        for site, own in values.items()
    }
    for site, changes in deltas.items():
        for path, delta in changes.items():
            sites[_slashed(f"{site}|{path}")] = delta
    return nn.ModuleDict(sites)


def _slashed(name: str) -> str:
    return name.replace(".", "/")


def changed_deltas(entries: Mapping[str, Entry], deltas: Deltas) -> Deltas:
    """The deltas of the sites that the plan changes; a site that stays keeps its weights."""
    return {
        site: changes
        for site, changes in deltas.items()
        if site in entries and entries[site].changes
    }


def merge(
    deltas: Iterable[Mapping[str, Delta]], weights: Mapping[str, Tensor], merged: set[int]
) -> list[Tensor]:
    """Add deltas to a model's weights in place; returns the weights that changed.

    ``merged`` holds ``id`` of the weights that received their delta before.

    Raises:
        PlanError: a weight is missing, of another shape, or was merged before; all weights are
            then unchanged.
    """
    wanted = [change for changes in deltas for change in changes.items()]
    for path, delta in wanted:
        check_deltas({path: delta}, weights)
        if id(weights[path]) in merged:
            raise PlanError(
                f"expected the weight {path} without the plan's delta, got it merged already;"
                " go on with the plan that merge_into returned"
            )
    return _add(wanted, weights)


def _add(wanted: Sequence[tuple[str, Delta]], weights: Mapping[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        for path, delta in wanted:
            weight = weights[path]
            weight.copy_(copy.deepcopy(delta).to(weight.device).add(weight))
    return [weights[path] for path, _ in wanted]
