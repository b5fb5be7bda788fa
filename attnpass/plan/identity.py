"""The identity of a plan, of its sites and of the model's weights.

In memory a site is recognised by the places of its projection parameters (``Bindings``). On disk
it is recognised by digests: of the sites' shapes (``structure_digest``), of the projection weights
(``weights_digest``), and of all that a plan computes (``plan_hash``).
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from attnpass.fingerprint import digest_weights
from attnpass.plan.entry import Entry
from attnpass.plan.parameters import Deltas, Values


@dataclass(frozen=True)
class Place:
    """Where a model holds a parameter: its path, the module that owns it, and the name there.

    The parameter object may change (``load_state_dict(assign=True)``, an optimiser's swap, sharded
    weights that are gathered for a call); the place stays. Without an owner it is the object.
    """

    path: str
    owner: weakref.ref[nn.Module] | None
    name: str
    object: weakref.ref[Tensor] | None = None

    def now(self) -> Tensor | None:
        """The parameter that stands here at this moment; None where the model is gone."""
        if self.owner is not None:
            module = self.owner()
            return None if module is None else module._parameters.get(self.name)
        return None if self.object is None else self.object()


Places = Mapping[int, Place]
"""``id`` of every parameter of a model to its first place there."""


def places_in(model: nn.Module) -> dict[int, Place]:
    """The places of a model's parameters as they are now."""
    found: dict[int, Place] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in found:
                path = f"{prefix}.{name}" if prefix else name
                found[id(parameter)] = Place(path, weakref.ref(module), name)
    return found


class Bindings:
    """The projection parameters of every site of the model that a plan was bound to.

    They are held by their places in the model, by weak references: a plan keeps no model alive.
    Weights that received the plan's deltas are remembered too, so that no delta is added twice.
    """

    def __init__(self) -> None:
        self._projections: dict[str, list[Place]] = {}
        self._checked: set[str] = set()
        self._merged: list[weakref.ref[Tensor]] = []

    def __bool__(self) -> bool:
        """Whether any site is bound."""
        return bool(self._projections)

    def copy(self) -> Bindings:
        """The same projections; neither checks nor merges are carried over."""
        other = Bindings()
        other._projections = dict(self._projections)
        return other

    def bind(self, site: str, projections: Iterable[Tensor], places: Places | None = None) -> None:
        """Remember the projection parameters of a site, in order, by ``places`` of the model."""
        known = places or {}
        self._projections[site] = [
            known.get(id(p)) or Place("", None, "", weakref.ref(p)) for p in projections
        ]

    def places_of(self, site: str) -> list[Place]:
        """The places of a site's projection parameters, in order."""
        return self._projections.get(site, [])

    def parameters_of(self, site: str) -> list[Tensor]:
        """The projection parameters of a site, in order; empty where it is not bound."""
        found = [place.now() for place in self.places_of(site)]
        return [p for p in found if p is not None]

    def parameter_ids(self) -> set[int]:
        """``id`` of the projection parameters of all bound sites."""
        return {id(p) for site in self._projections for p in self.parameters_of(site)}

    def add_merged(self, weight: Tensor) -> None:
        """Remember that a weight received its delta."""
        self._merged.append(weakref.ref(weight))

    def merged_ids(self) -> set[int]:
        """``id`` of the weights that received their deltas."""
        return {id(weight) for weight in _alive(self._merged)}

    def are_foreign(self, site: str, projections: Iterable[Tensor], digest: str) -> bool:
        """Whether a site's projections differ from those that its deltas were trained on.

        The first call per site decides, later ones return False. The bound parameters themselves
        are never foreign, whatever their values: they may have been trained together with the
        deltas. They become foreign when a delta is merged into them.
        """
        if site in self._checked:
            return False
        self._checked.add(site)
        projections = list(projections)
        ids = [id(parameter) for parameter in projections]
        bound = ids == [id(parameter) for parameter in self.parameters_of(site)]
        if bound and self.merged_ids().isdisjoint(ids):
            return False
        return digest_weights(projections) != digest


def _alive(references: Iterable[weakref.ref[Tensor]]) -> list[Tensor]:
    return [tensor for ref in references if (tensor := ref()) is not None]


def plan_hash(
    entries: Mapping[str, Entry], values: Values, deltas: Deltas, runs: Callable[[Entry], bool]
) -> str:
    """Digest of forms, options and parameter values where an entry ``runs``, 16 hex digits."""
    h, encode = hashlib.sha256(), json.JSONEncoder(sort_keys=True).encode
    for name in sorted(entries):
        entry = entries[name]
        if not runs(entry):
            continue
        h.update(encode([name, entry.form, entry.options, entry.fits]).encode())
        own = values.get(name, {})
        h.update(" ".join(sorted(own)).encode())
        h.update(digest_weights(own[key] for key in sorted(own)).encode())
        for path, delta in sorted(deltas.get(name, {}).items()):
            parts = sorted(delta.named_parameters())
            h.update(" ".join((path, *(key for key, _ in parts))).encode())
            h.update(digest_weights(part for _, part in parts).encode())
    return h.hexdigest()[:16]


def structure_digest(entries: Mapping[str, Entry]) -> str:
    """Digest of the sites' names and shapes, 16 hex digits."""
    rows = [[name, entry.fits] for name, entry in sorted(entries.items())]
    return _short(json.dumps(rows, sort_keys=True))


def weights_digest(entries: Mapping[str, Entry]) -> str:
    """Digest of the sites' projection weights, 16 hex digits."""
    return _short(json.dumps([[name, entry.weights] for name, entry in sorted(entries.items())]))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
