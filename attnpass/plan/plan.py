"""Plan: which form runs at which site, with its parameters; JSON and safetensors on disk.

Loading never unpickles. A plan fits a site by name and structure; what does not fit stays softmax.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.files import replaced
from attnpass.fingerprint import digest_weights
from attnpass.kernels.tile import Tile, Tiles
from attnpass.plan.delta import Delta
from attnpass.plan.document import VERSION, _digest_all, _entry, _sorted
from attnpass.plan.entry import Entry, _loud, assign
from attnpass.site import AttentionSite

log = logging.getLogger("attnpass")


class Plan:
    """Forms per site, with trainable parameters.

    Attributes:
        sites: site name to ``Entry``, every site of the model, unconverted ones as ``softmax``.
        values: site name to the form's parameters by name.
        deltas: site name to what is added to the model's weights, by their path in the model.
        tiles: launch parameters, per device they were measured on: see ``add_tiles``.
        measured: numbers taken with this plan. made_by: versions and command.
        owners: site name to its projection parameters, where the model is known: its identity.
        round_trip: rewrite ``softmax`` sites too, from what was extracted, instead of leaving
            them as they are.
        trainable: whether the forms have parameters; else the constants they start from.
    """

    def __init__(self, sites: dict[str, Entry]) -> None:
        self.sites = sites
        self.values: dict[str, dict[str, nn.Parameter]] = {}
        self.deltas: dict[str, dict[str, Delta]] = {}
        self.tiles: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}
        self.made_by: dict[str, Any] = {}
        self.owners: dict[str, list[weakref.ref[Tensor]]] = {}
        self.round_trip = False
        self.trainable = True
        self._met: set[str] = set()
        self._merged: list[weakref.ref[Tensor]] = []

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
            allow: what the caller accepts (``site.ALLOW``).
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
        with torch.inference_mode(False):  # what learns later
            return capture.plan(entries)

    def initialise(self, sites: Iterable[AttentionSite]) -> Plan:
        """Make the parameters of every entry at their start, where there are none yet."""
        for site in sites:
            entry = self.sites.get(site.name)
            if entry is not None and entry.form != "softmax" and site.name not in self.values:
                module = forms.build(entry.form, site, entry.options)
                self.values[site.name] = dict(module.named_parameters())
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
        entry = self.sites.get(site.name)
        if entry is None or not (entry.changes or self.round_trip):
            return None
        try:
            self._check(entry, site)
            module = forms.build(
                entry.form, site, entry.options, trainable=self.trainable, tiles=tiles
            )
            self._share(module, site)
            self._check_deltas(site.name, weights)
            self._move(site.name, device)
        except (PlanError, OptionError) as error:
            _loud(PlanError(f"{error}; {site.name} stays softmax"), strict)
            return None
        return module

    @staticmethod
    def _check(entry: Entry, site: AttentionSite) -> None:
        if entry.fits and entry.fits != site.fits():
            differs = [k for k, v in site.fits().items() if entry.fits.get(k) != v]
            raise PlanError(
                f"expected the plan's site {site.name} with {differs[0]} "
                f"{entry.fits.get(differs[0])}, got {site.fits()[differs[0]]}: another model"
            )
        no = site.legal.get(entry.form)
        if no is not None:
            raise PlanError(f"expected a legal form at {site.name}, got {entry.form} ({no})")

    def _share(self, module: nn.Module, site: AttentionSite) -> None:
        """Put this plan's parameters in place of the module's own."""
        values = self.values.setdefault(site.name, {})
        own = dict(module.named_parameters())
        extra = sorted(set(values) - set(own))
        if extra:
            log.warning(
                "%s: parameters %s are not of this form and are ignored",
                site.name,
                ", ".join(extra),
            )
        for name, start in own.items():
            if name not in values:
                start.requires_grad_(self.trainable)
                values[name] = start
            elif values[name].shape != start.shape:
                raise PlanError(
                    f"expected {site.name}.{name} of shape {tuple(start.shape)}, "
                    f"got {tuple(values[name].shape)}"
                )
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, values[name])

    def _check_deltas(self, site: str, weights: Mapping[str, Tensor] | None) -> None:
        """Every weight that the plan changes at a site is there, and of the right shape."""
        for path, delta in self.deltas.get(site, {}).items():
            got = None if weights is None else weights.get(path)
            if weights is not None and (got is None or not delta.fits(got)):
                found = "none" if got is None else f"shape {tuple(got.shape)}"
                raise PlanError(f"expected the weight {path} that the plan changes, got {found}")

    def meet(self, site: str, parameters: Iterable[Tensor]) -> None:
        """Warn, once, where deltas of ``site`` meet projections they were not trained on.

        The very parameters that they were made for may have been trained together with them.
        """
        entry, parameters = self.sites[site], list(parameters)
        if not self.deltas.get(site) or not entry.weights or site in self._met:
            return
        self._met.add(site)
        met = [id(p) for p in parameters]
        ours = met == [id(p) for p in self.parameters_of(site)]
        if ours and self._holding().isdisjoint(met):
            return
        if digest_weights(parameters) != entry.weights:
            log.warning(
                "%s: the plan's deltas were trained on other weights than these; merged already?",
                site,
            )

    def _holding(self) -> set[int]:
        """Identities of the weights that this plan was merged into."""
        return {id(weight) for ref in self._merged if (weight := ref()) is not None}

    def _move(self, site: str, device: torch.device | None) -> None:
        """Bring a site's parameters to a device; they stay the objects an optimiser knows."""
        deltas = (p for d in self.deltas.get(site, {}).values() for p in d.parameters())
        for parameter in (*self.values[site].values(), *deltas):
            if device is not None and parameter.device != device:
                parameter.data = parameter.data.to(device)
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.to(device)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The forms' parameters, then the deltas', for an optimiser."""
        for values in self.values.values():
            yield from values.values()
        for deltas in self.deltas.values():
            for delta in deltas.values():
                yield from delta.parameters()

    def attach(self, model: nn.Module) -> Plan:
        """Register the parameters in ``model`` as ``attnpass_plan``; returns the plan.

        They are then in ``model.parameters()``, its state dict and under DDP.
        """
        sites: dict[str, nn.Module] = {
            site.replace(".", "/"): nn.ParameterDict(
                {k.replace(".", "/"): v for k, v in own.items()}
            )
            for site, own in self.values.items()
        }
        for site, deltas in self.deltas.items():
            for path, delta in deltas.items():
                sites[f"{site}|{path}".replace(".", "/")] = delta
        model.add_module("attnpass_plan", nn.ModuleDict(sites))
        return self

    def merge_into(self, model: nn.Module) -> Plan:
        """Add the deltas to the weights of ``model``, in place; returns the plan without them.

        This plan still belongs to the weights as they were; the one that is returned, which shares
        the forms' parameters, to the merged ones. What was measured still holds for it.

        Raises:
            PlanError: a weight is missing, of another shape, or has the delta already; the model
                is then unchanged.
        """
        weights = dict(model.named_parameters(remove_duplicate=False))
        wanted = [x for site in self._changed() for x in self.deltas[site].items()]
        for path, delta in wanted:
            if path not in weights or not delta.fits(weights[path]):
                got = tuple(weights[path].shape) if path in weights else "none"
                raise PlanError(f"expected the weight {path} that the plan changes, got {got}")
            if id(weights[path]) in self._holding():
                raise PlanError(
                    f"expected the weight {path} without the plan's delta, got it merged already;"
                    " go on with the plan that merge_into returned"
                )
        with torch.no_grad():
            for path, delta in wanted:
                weight = weights[path]
                self._merged.append(weakref.ref(weight))
                weight.copy_(copy.deepcopy(delta).to(weight.device).add(weight))
        merged = Plan({name: replace(e, weights="") for name, e in self.sites.items()})
        rest = ("values", "tiles", "measured", "made_by", "owners", "round_trip", "trainable")
        for name in rest:
            setattr(merged, name, getattr(self, name))
        return merged

    def _changed(self) -> list[str]:
        """Sites whose weights the plan changes; one that stays as it is keeps its own."""
        return [s for s in self.deltas if s in self.sites and self.sites[s].changes]

    def copy(self) -> Plan:
        """The same plan with parameters of its own."""
        other = Plan({name: replace(e) for name, e in self.sites.items()})
        for name in ("values", "deltas", "tiles", "measured", "made_by"):
            setattr(other, name, copy.deepcopy(getattr(self, name)))
        other.round_trip, other.trainable = self.round_trip, self.trainable
        other.owners = dict(self.owners)
        return other

    def own(self, site: AttentionSite, parameters: Iterable[Tensor]) -> None:
        """Remember which projection parameters make ``site``; voids numbers of other weights."""
        parameters = list(parameters)
        self.owners[site.name] = [weakref.ref(p) for p in parameters]
        entry, digest = self.sites.get(site.name), digest_weights(parameters)
        if entry is not None:
            if entry.weights and entry.weights != digest and self.measured:
                log.warning(
                    "the weights of %s changed since this plan was measured; its numbers are void",
                    site.name,
                )
                self.measured = {}
            entry.weights = digest

    def bind(self, model: nn.Module, *args: Any, **kwargs: Any) -> Plan:
        """Learn the layers' identities from ``model(*args, **kwargs)``; returns the plan.

        Needed for a loaded plan where one graph serves many layers (graph breaks, regional
        compile).

        Raises:
            CaptureError: the model cannot be captured.
        """
        from attnpass.capture import Capture

        Capture(model).trace(*args, **kwargs).own(self)
        return self

    def parameters_of(self, site: str) -> list[Tensor]:
        """The projection parameters that make ``site``, in order; empty where unknown."""
        found = [ref() for ref in self.owners.get(site, [])]
        return [p for p in found if p is not None]

    def known(self) -> set[int]:
        """Identities of all projection parameters of the model this plan was bound to."""
        return {id(p) for site in self.owners for p in self.parameters_of(site)}

    def add_tiles(self, context: Mapping[str, Any], tiles: Tiles) -> None:
        """Carry tiles that were measured in ``context`` (``environment.kernel_context``)."""
        taken = {"context": dict(context), "tiles": {k: t.as_dict() for k, t in tiles.items()}}
        self.tiles[hashlib.sha256(_sorted(context).encode()).hexdigest()[:16]] = taken

    def tiles_for(self, context: Mapping[str, Any]) -> dict[str, Tile]:
        """The tiles measured in ``context``; none where it differs, or where they are broken."""
        for taken in self.tiles.values():
            try:
                if _sorted(taken["context"]) == _sorted(context):
                    return {k: Tile(**t) for k, t in taken["tiles"].items()}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("the plan's tiles are not used: %s", error)
        return {}

    @property
    def hash(self) -> str:
        """What identifies this plan: forms, options and parameter values, 16 hex digits."""
        h = hashlib.sha256()
        for name, entry in sorted(self.sites.items()):
            if not (entry.changes or self.round_trip):
                continue
            known = [name, entry.form, entry.options, entry.fits]
            h.update(json.dumps(known, sort_keys=True).encode())
            values = self.values.get(name, {})
            h.update(" ".join(sorted(values)).encode())
            h.update(digest_weights(values[k] for k in sorted(values)).encode())
            for path, delta in sorted(self.deltas.get(name, {}).items()):
                kinds = sorted(delta.named_parameters())
                h.update(" ".join((path, *(k for k, _ in kinds))).encode())
                h.update(digest_weights(p for _, p in kinds).encode())
        return h.hexdigest()[:16]

    @property
    def structure(self) -> str:
        """Digest of the sites' names and shapes, 16 hex digits."""
        rows = [[name, e.fits] for name, e in sorted(self.sites.items())]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def weights(self) -> str:
        """Digest of the sites' projection weights, 16 hex digits."""
        rows = [[name, e.weights] for name, e in sorted(self.sites.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """The plan without parameter values, as plain JSON types."""
        return {
            "version": VERSION,
            "model": {"structure": self.structure, "weights": self.weights},
            "sites": {name: e.as_dict() for name, e in self.sites.items()},
            "tiles": self.tiles,
            "measured": self.measured,
            "made_by": self.made_by,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Values under ``site|name``, deltas under ``site|weight|part``, as they are stored."""
        found = {
            f"{site}|{name}": value
            for site, values in self.values.items()
            for name, value in values.items()
        }
        found |= {
            f"{site}|{path}|{name}": value
            for site in self._changed()
            for path, delta in self.deltas[site].items()
            for name, value in delta.named_parameters()
        }
        return {k: v.detach().cpu().contiguous() for k, v in found.items()}

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (JSON) and, beside it, the parameters as safetensors.

        They are in ``plan.safetensors`` for ``plan.json``; other names get the ending added. Each
        file is replaced whole.

        Raises:
            PlanError: the folder cannot be written.
        """
        from safetensors.torch import save_file

        path = Path(path)
        out = self.as_dict()
        tensors = self.tensors()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if tensors:
                stem = path.with_suffix("") if path.suffix == ".json" else path
                beside = stem.with_name(f"{stem.name}.safetensors")
                out |= {"parameters": beside.name, "digest": _digest_all(tensors)}
                replaced(beside, lambda half: save_file(tensors, half))
            text = json.dumps(out, indent=2) + "\n"
            replaced(path, lambda half: half.write_text(text))
        except OSError as error:
            raise PlanError(
                f"expected to write the plan to {path}, got {error.strerror};"
                " choose another folder"
            ) from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan of a JSON file. Sites are validated when the plan meets a model.

        Raises:
            PlanError: no such file, not a plan, another version, an unknown form or option, or
                parameters that cannot be read.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise PlanError(f"expected a plan file at {path}, got {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"expected a plan in JSON at {path}, got {error}") from error
        return cls.from_dict(data, path)

    @classmethod
    def from_dict(cls, data: Any, path: Path) -> Plan:
        """The plan of parsed JSON; ``path`` locates its parameters and names it in errors.

        Raises:
            PlanError: as ``load``.
        """
        if not isinstance(data, dict) or not isinstance(data.get("sites"), dict):
            raise PlanError(f"expected a plan with 'version' and 'sites' in {path}, got neither")
        if data.get("version") is True or data.get("version") != VERSION:
            raise PlanError(
                f"expected plan version {VERSION} in {path}, got {data.get('version')};"
                " write it again with this version of attnpass"
            )
        sites = {name: _entry(name, raw, path) for name, raw in data["sites"].items()}
        plan = cls(sites)
        for key in ("tiles", "measured", "made_by"):
            value = data.get(key, {})
            if not isinstance(value, dict):
                raise PlanError(f"expected '{key}' in {path} to be an object, got {value!r}")
            setattr(plan, key, value)
        if data.get("parameters"):
            beside = path.parent / Path(str(data["parameters"])).name
            plan._load_values(beside, str(data.get("digest", "")))
        return plan

    def _load_values(self, path: Path, digest: str) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise PlanError(f"expected the plan's parameters at {path}, got: {error}") from error
        if digest and digest != _digest_all(tensors):
            log.warning("%s is not what the plan was saved with; what was measured is void", path)
            self.measured = {}
        changes: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, value in tensors.items():
            site, *weight, name = key.split("|")
            if site not in self.sites:
                raise PlanError(f"expected parameters of the plan's sites in {path}, got {site}")
            if not value.is_floating_point():
                raise PlanError(f"expected float parameters in {path}, got {value.dtype} at {key}")
            if weight:
                changes.setdefault((site, "|".join(weight)), {})[name] = value
            else:
                self.values.setdefault(site, {})[name] = nn.Parameter(value)
        for (site, at), parts in changes.items():
            try:
                self.deltas.setdefault(site, {})[at] = Delta.of(parts)
            except ValueError as error:
                raise PlanError(f"{error} at {site}|{at} in {path}") from error

    def constant(self) -> Plan:
        """The same plan with constants instead of parameters, where it has none yet."""
        self.trainable = False
        return self

    def frozen(self) -> Plan:
        """The same plan with parameters that no optimiser can change."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        return self
