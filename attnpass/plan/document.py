"""A plan on disk: JSON for the entries, safetensors for the parameters. Loading never unpickles.

The parameters of ``plan.json`` are in ``plan.safetensors`` beside it, a form's under
``site|name``, a delta's under ``site|weight|part``. The JSON holds a digest of them, since a save
may be interrupted between its two files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.files import replace_file
from attnpass.fingerprint import digest_weights
from attnpass.plan.delta import Delta
from attnpass.plan.entry import Entry
from attnpass.plan.identity import structure_digest, weights_digest
from attnpass.plan.parameters import Deltas, Values, changed_deltas
from attnpass.site import FORMS

log = logging.getLogger("attnpass")

VERSION = 1
"""Version of the file format."""


@dataclass(frozen=True)
class Document:
    """The stored part of a plan; the attributes are those of ``Plan``."""

    sites: dict[str, Entry]
    values: Values = field(default_factory=dict)
    deltas: Deltas = field(default_factory=dict)
    tiles: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The plan without parameter values, as plain JSON types."""
        return {
            "version": VERSION,
            "model": {
                "structure": structure_digest(self.sites),
                "weights": weights_digest(self.sites),
            },
            "sites": {name: entry.as_dict() for name, entry in self.sites.items()},
            "tiles": self.tiles,
            "measured": self.measured,
            "made_by": self.made_by,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in the file, detached and on the CPU."""
        found: dict[str, Tensor] = {
            f"{site}|{name}": value
            for site, values in self.values.items()
            for name, value in values.items()
        }
        found |= {
            f"{site}|{path}|{name}": value
            for site, changes in changed_deltas(self.sites, self.deltas).items()
            for path, delta in changes.items()
            for name, value in delta.named_parameters()
        }
        return {key: value.detach().cpu().contiguous() for key, value in found.items()}

    def save(self, path: Path) -> None:
        """Write the JSON to ``path`` and the parameters beside it; each file is replaced whole.

        The ending ``.json`` becomes ``.safetensors``; other names get the ending added.

        Raises:
            PlanError: the folder cannot be written.
        """
        from safetensors.torch import save_file

        out, held = self.as_dict(), self.tensors()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if held:
                stem = path.with_suffix("") if path.suffix == ".json" else path
                beside = stem.with_name(f"{stem.name}.safetensors")
                out |= {"parameters": beside.name, "digest": _digest(held)}
                replace_file(beside, lambda half: save_file(held, half))
            text = json.dumps(out, indent=2) + "\n"
            replace_file(path, lambda half: half.write_text(text))
        except OSError as error:
            raise PlanError(
                f"expected to write the plan to {path}, got {error.strerror};"
                " choose another folder"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Document:
        """The plan of a JSON file and of the parameters beside it.

        Raises:
            PlanError: no such file, not a plan, another version, an unknown form or option, or
                parameters that cannot be read.
        """
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise PlanError(f"expected a plan file at {path}, got {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"expected a plan in JSON at {path}, got {error}") from error
        return cls.parse(data, path)

    @classmethod
    def parse(
        cls, data: object, path: Path, tensors: Mapping[str, Tensor] | None = None
    ) -> Document:
        """The plan of parsed JSON; ``path`` names it in errors.

        The parameters are ``tensors``, by default those of the file that the JSON names, which is
        looked for beside ``path``.

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
        extras = {key: data.get(key, {}) for key in ("tiles", "measured", "made_by")}
        for key, value in extras.items():
            if not isinstance(value, dict):
                raise PlanError(f"expected '{key}' in {path} to be an object, got {value!r}")
        beside = path
        if tensors is None and data.get("parameters"):
            beside = path.parent / Path(str(data["parameters"])).name
            tensors = _read(beside)
            if data.get("digest") and str(data["digest"]) != _digest(tensors):
                log.warning(
                    "%s holds other parameters than the plan was saved with;"
                    " the plan's measured numbers are void",
                    beside,
                )
                extras["measured"] = {}
        return cls(sites, *_parameters(tensors or {}, sites, beside), **extras)


def _entry(name: str, raw: object, path: Path) -> Entry:
    """One validated entry of a plan file."""
    if not isinstance(raw, dict) or raw.get("form") not in FORMS:
        got = raw.get("form") if isinstance(raw, dict) else raw
        raise PlanError(f"expected a form of {', '.join(FORMS)} at {name} in {path}, got {got!r}")
    options, fits = raw.get("options", {}), raw.get("fits", {})
    if not isinstance(fits, dict):
        raise PlanError(f"expected 'fits' to be an object at {name} in {path}, got {fits!r}")
    try:
        forms.check_names(raw["form"], options)
    except (OptionError, TypeError) as error:
        raise PlanError(f"{error} (at {name} in {path})") from error
    return Entry(raw["form"], dict(options), dict(fits), str(raw.get("weights", "")))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PlanError(f"expected the plan's parameters at {path}, got: {error}") from error
    return held


def _parameters(
    held: Mapping[str, Tensor], sites: Mapping[str, Entry], path: Path
) -> tuple[Values, Deltas]:
    """Stored tensors as the forms' parameters and the deltas of the plan's sites."""
    values: Values = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in held.items():
        site, *weight, name = key.split("|")
        if site not in sites:
            raise PlanError(f"expected parameters of the plan's sites in {path}, got {site}")
        if not value.is_floating_point():
            raise PlanError(f"expected float parameters in {path}, got {value.dtype} at {key}")
        if weight:
            parts.setdefault((site, "|".join(weight)), {})[name] = value
        else:
            values.setdefault(site, {})[name] = nn.Parameter(value)
    deltas: Deltas = {}
    for (site, at), tensors_of_delta in parts.items():
        try:
            deltas.setdefault(site, {})[at] = Delta.of(tensors_of_delta)
        except ValueError as error:
            raise PlanError(f"{error} at {site}|{at} in {path}") from error
    return values, deltas


def _digest(held: Mapping[str, Tensor]) -> str:
    return digest_weights(held[key] for key in sorted(held))
