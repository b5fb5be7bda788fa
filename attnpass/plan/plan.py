"""``Plan``: the form of every attention site of a model, with the forms' trainable parameters.

``Plan`` is the one public object of the room. The ideas behind it have files of their own: entries
(``entry``), live parameters (``parameters``, ``delta``), the identity of weights (``identity``),
the file format (``document``) and the tiles it carries (``tiles``).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.fingerprint import digest_weights
from attnpass.kernels.tile import Tile, Tiles
from attnpass.plan.document import Document
from attnpass.plan.entry import Entry, assign, warn_or_raise
from attnpass.plan.identity import (
    Bindings,
    Places,
    plan_hash,
    structure_digest,
    weights_digest,
)
from attnpass.plan.parameters import (
    Deltas,
    Values,
    add_starting_values,
    as_module,
    changed_deltas,
    check_deltas,
    merge,
    move,
    parameters_in,
    share,
)
from attnpass.plan.tiles import add_tiles, tiles_for
from attnpass.site import AttentionSite
from attnpass.text import listed

log = logging.getLogger("attnpass")


class Plan:
    """Forms per site, with trainable parameters.

    Attributes:
        sites: site name to ``Entry``, every site of the model, unconverted ones as ``softmax``.
        values: site name to the form's parameters by name.
        deltas: site name to the deltas of the model's weights, by the weight's path in the model.
        tiles: launch parameters, per device they were measured on: see ``add_tiles``.
        measured: numbers taken with this plan. made_by: versions and command.
        bindings: the projection parameters of each site, where the plan was bound to a model.
        round_trip: rewrite ``softmax`` sites too, from the extracted attention, instead of leaving
            them as they are.
        trainable: whether the forms have parameters; else the constants they start from.
        held: not 0 while sums of weights and deltas are kept between calls: see ``hold``.
    """

    def __init__(self, sites: dict[str, Entry]) -> None:
        self.sites = sites
        self.values: Values = {}
        self.deltas: Deltas = {}
        self.tiles: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}
        self.made_by: dict[str, Any] = {}
        self.bindings = Bindings()
        self.round_trip = False
        self.trainable = True
        self.held = self._holds = 0

    @classmethod
    def create(
        cls,
        model: nn.Module,
        *args: Any,
        form: str = "softmax",
        form_options: Mapping[str, Any] | None = None,
        sites: Sequence[str] | str | None = None,
        allow: Sequence[str] = (),
        strict: bool = False,
        **kwargs: Any,
    ) -> Plan:
        """A plan for ``model``, captured on ``model(*args, **kwargs)``, parameters at their start.

        Args:
            model: the model, in the mode (train or eval) in which it will run.
            args: example inputs. kwargs: likewise.
            form: the form of all sites that ``sites`` selects. form_options: its options.
            sites: globs on site names; ``None`` selects all.
            allow: deviations that the caller accepts (``site.ALLOW``).
            strict: raise where a site named exactly cannot take the form.

        Raises:
            OptionError: unknown form, option, or a glob that matches no site.
            PlanError: with ``strict``, an illegal site.
            CaptureError: the model cannot be captured, or has no attention.
        """
        from attnpass.capture import Capture

        capture = Capture(model, allow=allow)
        capture.trace(*args, **kwargs)
        entries, _ = assign(capture.sites, form, form_options, sites, strict=strict)
        # an inference tensor could not be trained later
        with torch.inference_mode(False):
            plan = capture.plan(entries)
        capture.close()
        return plan

    def absent(self, names: Collection[str], place: str = "model") -> list[PlanError]:
        """An error where changed sites are not among ``names``, the sites of ``place``."""
        gone = [name for name, entry in self.sites.items() if entry.changes and name not in names]
        if not gone:
            return []
        sites = "site" if len(gone) == 1 else "sites"
        return [
            PlanError(
                f"expected the plan's {sites} {listed(gone)} in the {place}, found none;"
                " was the plan made for another model?"
            )
        ]

    def _rewrites(self, entry: Entry) -> bool:
        return entry.changes or self.round_trip

    def initialise(self, sites: Iterable[AttentionSite]) -> Plan:
        """Make the parameters of every entry at their start, where there are none yet."""
        add_starting_values(self.values, self.sites, sites)
        return self

    def module(
        self,
        site: AttentionSite,
        *,
        strict: bool = False,
        tiles: Tiles | None = None,
        device: torch.device | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> nn.Module | None:
        """The form's module for ``site``, sharing this plan's parameters; None: stays softmax.

        The parameters are brought to ``device``, that of the site's projections. ``weights`` are
        those of the site's graph, by their path in the model.

        An entry that is missing, does not fit, is illegal there, or has parameters or deltas of
        other shapes gives None with one warning; ``strict`` raises instead.

        Raises:
            PlanError: with ``strict``, as above.
        """
        name, entry = site.name, self.sites.get(site.name)
        if entry is None or not self._rewrites(entry):
            return None
        try:
            entry.check(site)
            options, trainable = entry.options, self.trainable
            module = forms.build(entry.form, site, options, trainable=trainable, tiles=tiles)
            values, deltas = self.values.setdefault(name, {}), self.deltas.get(name, {})
            share(values, module, name, trainable=trainable)
            if weights is not None:
                check_deltas(deltas, weights)
        except (PlanError, OptionError) as error:
            warn_or_raise(PlanError(f"{error}; {name} stays softmax"), strict)
            return None
        if device is not None:
            move(parameters_in({name: values}, {name: deltas}), device)
        return module

    def parameters(self) -> Iterator[nn.Parameter]:
        """The forms' parameters, then the deltas', for an optimiser."""
        return parameters_in(self.values, self.deltas)

    def attach(self, model: nn.Module) -> Plan:
        """Register the parameters in ``model`` as ``attnpass_plan``; returns the plan.

        They are then in ``model.parameters()``, its state dict and under DDP.
        """
        model.add_module("attnpass_plan", as_module(self.values, self.deltas))
        return self

    def constant(self) -> Plan:
        """The same plan with constants instead of parameters, where it has none yet."""
        self.trainable = False
        return self

    def hold(self) -> Plan:
        """Keep W + delta of every layer from its next call on; returns the plan.

        For serving, where the addition costs time. To be called before the model is compiled.
        From then on the model no longer sees writes to the weights that have a delta (``to()`` of
        another dtype and back is one), nor to the deltas, and gradients reach neither: a call that
        records them is refused. ``hold`` again takes the numbers of then; ``release`` computes
        them at every call again.
        """
        self._holds += 1
        self.held = self._holds
        return self

    def release(self) -> Plan:
        """Compute W + delta at every call again; returns the plan."""
        self.held = 0
        return self

    def frozen(self) -> Plan:
        """The same plan with parameters that no optimiser can change."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        return self

    def copy(self) -> Plan:
        """The same plan with parameters of its own."""
        other = Plan({name: replace(entry) for name, entry in self.sites.items()})
        for name in ("values", "deltas", "tiles", "measured", "made_by"):
            setattr(other, name, copy.deepcopy(getattr(self, name)))
        other.round_trip, other.trainable = self.round_trip, self.trainable
        other.held = other._holds = self.held
        other.bindings = self.bindings.copy()
        return other

    def merge_into(self, model: nn.Module) -> Plan:
        """Add the deltas to the weights of ``model``, in place; returns the plan without them.

        This plan still belongs to the weights before the merge. The returned plan belongs to the
        merged weights and shares the forms' parameters; the measured numbers still hold for it.

        Raises:
            PlanError: a weight is missing, of another shape, or has the delta already; the model
                is then unchanged.
        """
        changes = changed_deltas(self.sites, self.deltas).values()
        weights = dict(model.named_parameters(remove_duplicate=False))
        for weight in merge(changes, weights, self.bindings.merged_ids()):
            self.bindings.add_merged(weight)
        merged = Plan({name: replace(entry, weights="") for name, entry in self.sites.items()})
        for name in ("values", "tiles", "measured", "made_by", "round_trip", "trainable"):
            setattr(merged, name, getattr(self, name))
        merged.bindings = self.bindings.copy()
        return merged

    def bind(self, model: nn.Module, *args: Any, **kwargs: Any) -> Plan:
        """Learn the layers' identities from ``model(*args, **kwargs)``; returns the plan.

        Needed for a loaded plan where one graph serves many layers (graph breaks, regional
        compile).

        Raises:
            CaptureError: the model cannot be captured.
        """
        from attnpass.capture import Capture

        capture = Capture(model).trace(*args, **kwargs)
        capture.bind_plan(self)
        capture.close()
        return self

    def bind_site(
        self, site: AttentionSite, projections: Iterable[Tensor], places: Places | None = None
    ) -> None:
        """Remember the projection parameters of ``site``; voids numbers of other weights.

        ``places`` says where the model holds them, so that they are known after an exchange.
        """
        projections = list(projections)
        self.bindings.bind(site.name, projections, places)
        entry, digest = self.sites.get(site.name), digest_weights(projections)
        if entry is None:
            return
        if entry.weights and entry.weights != digest and self.measured:
            log.warning(
                "the weights of %s changed since this plan was measured; its numbers are void",
                site.name,
            )
            self.measured = {}
        entry.weights = digest

    def warn_if_weights_changed(self, site: str, projections: Iterable[Tensor]) -> None:
        """Warn, once, where the deltas of ``site`` were trained on other projection weights."""
        digest = self.sites[site].weights
        if not self.deltas.get(site) or not digest:
            return
        if self.bindings.are_foreign(site, projections, digest):
            log.warning(
                "%s: the plan's deltas were trained on other weights than these; merged already?",
                site,
            )

    def parameters_of(self, site: str) -> list[Tensor]:
        """The projection parameters of ``site``, in order; empty where it is not bound."""
        return self.bindings.parameters_of(site)

    @property
    def hash(self) -> str:
        """The identity of this plan: forms, options and parameter values, 16 hex digits."""
        return plan_hash(self.sites, self.values, self.deltas, self._rewrites)

    def content(self, site: str) -> str:
        """The identity of what one site runs: form, options, values and deltas, 16 hex digits."""
        values, deltas = {site: self.values.get(site, {})}, {site: self.deltas.get(site, {})}
        own = {name: entry for name, entry in self.sites.items() if name == site}
        return plan_hash(own, values, deltas, self._rewrites)

    @property
    def structure(self) -> str:
        """Digest of the sites' names and shapes, 16 hex digits."""
        return structure_digest(self.sites)

    @property
    def weights(self) -> str:
        """Digest of the sites' projection weights, 16 hex digits."""
        return weights_digest(self.sites)

    def _document(self) -> Document:
        return Document(
            self.sites, self.values, self.deltas, self.tiles, self.measured, self.made_by
        )

    def as_dict(self) -> dict[str, Any]:
        """The plan without parameter values, as plain JSON types."""
        return self._document().as_dict()

    def tensors(self) -> dict[str, Tensor]:
        """Values under ``site|name``, deltas under ``site|weight|part``, as they are stored."""
        return self._document().tensors()

    def tensors_by_site(self) -> Iterator[dict[str, Tensor]]:
        """The same of one site after the other: what is copied to the CPU is of one site."""
        return self._document().tensors_by_site()

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (JSON) and, beside it, the parameters as safetensors; returns the path.

        They are in ``plan.safetensors`` for ``plan.json``; other names get the ending added. Each
        file is replaced whole.

        Raises:
            PlanError: the folder cannot be written.
        """
        self._document().save(Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan of a JSON file. Sites are validated when the plan meets a model.

        Raises:
            PlanError: no such file, not a plan, another version, an unknown form or option, or
                parameters that cannot be read.
        """
        return cls._of(Document.load(Path(path)))

    @classmethod
    def from_dict(
        cls, data: object, path: Path, tensors: Mapping[str, Tensor] | None = None
    ) -> Plan:
        """The plan of parsed JSON; ``path`` names it in errors.

        The parameters are ``tensors`` as ``tensors()`` gives them, by default those of the file
        beside ``path`` that the JSON names.

        Raises:
            PlanError: as ``load``.
        """
        return cls._of(Document.parse(data, path, tensors))

    @classmethod
    def _of(cls, stored: Document) -> Plan:
        plan = cls(stored.sites)
        plan.values, plan.deltas = stored.values, stored.deltas
        plan.tiles, plan.measured, plan.made_by = stored.tiles, stored.measured, stored.made_by
        return plan

    def add_tiles(self, context: Mapping[str, object], tiles: Tiles) -> None:
        """Carry tiles that were measured in ``context`` (``environment.kernel_context``)."""
        add_tiles(self.tiles, context, tiles)

    def tiles_for(self, context: Mapping[str, object]) -> dict[str, Tile]:
        """The tiles measured in ``context``; none where it differs, or where they are broken."""
        return tiles_for(self.tiles, context)
