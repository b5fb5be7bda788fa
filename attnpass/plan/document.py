"""A plan on disk: JSON for the entries, safetensors for the parameters. Loading never unpickles.

The parameters of ``plan.json`` are in ``plan.safetensors`` beside it (``tensors``). A file that is
there already is not written over: the parameters of the next save get another name, the JSON is
replaced, and then the old file goes. So a save that is killed leaves the old plan or the new one.
The JSON holds a digest of the parameters, and others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from attnpass import forms
from attnpass.errors import OptionError, PlanError
from attnpass.files import parse_json, read_file, reason, replace_file, uncollected
from attnpass.plan.entry import Entry
from attnpass.plan.identity import structure_digest, weights_digest
from attnpass.plan.parameters import Deltas, Values, changed_deltas
from attnpass.plan.tensors import digest_tensors, read_tensors, split_tensors
from attnpass.site import FORMS
from attnpass.text import shown

VERSION = 1
"""Version of the file format."""

LARGEST = 2**27
"""Bytes of the JSON, enough for a hundred thousand sites."""


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
        found = {key: value for held in self.tensors_by_site() for key, value in held.items()}
        # values, then deltas: checkpoints are named by a text that has them in this order
        return {key: found[key] for key in sorted(found, key=lambda key: key.count("|"))}

    def tensors_by_site(self) -> Iterator[dict[str, Tensor]]:
        """The same of one site after the other: what is copied to the CPU is of one site."""
        deltas = changed_deltas(self.sites, self.deltas)
        for site in {**self.values, **deltas}:
            held: dict[str, Tensor] = {
                f"{site}|{name}": value for name, value in self.values.get(site, {}).items()
            }
            held |= {
                f"{site}|{path}|{name}": value
                for path, delta in deltas.get(site, {}).items()
                for name, value in delta.named_parameters()
            }
            yield {key: value.detach().cpu().contiguous() for key, value in held.items()}

    def save(self, path: Path) -> None:
        """Write the JSON to ``path`` and the parameters beside it; each file is replaced whole.

        The ending ``.json`` becomes ``.safetensors``; other names get the ending added.

        Raises:
            PlanError: the folder cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self.check_values(path)
        out, held = self.as_dict(), self.tensors()
        made: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            old = _parameters_of(path)
            if held:
                digest = digest_tensors(held)
                beside = _beside(path, digest, old)
                out |= {"parameters": beside.name, "digest": digest}
                made = None if beside.exists() else beside
                replace_file(beside, lambda half: save_file(held, half))
            text = json.dumps(out, indent=2) + "\n"
            replace_file(path, lambda half: half.write_text(text))
            if old and old[0] != out.get("parameters"):
                path.with_name(old[0]).unlink(missing_ok=True)
        except (OSError, SafetensorError, UnicodeError) as error:
            if made is not None:
                made.unlink(missing_ok=True)
            raise PlanError(
                f"expected to write the plan to {path}, got {reason(error)}; choose another folder"
            ) from error

    @classmethod
    @uncollected()
    def load(cls, path: Path) -> Document:
        """The plan of a JSON file and of the parameters beside it.

        Raises:
            PlanError: no such file, not a plan, another version, an unknown form or option, or
                parameters that cannot be read.
        """
        try:
            data = parse_json(read_file(path, LARGEST))
        except OSError as error:
            raise PlanError(f"expected a plan file at {path}, got {reason(error)}") from error
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
                f"expected plan version {VERSION} in {path}, got {shown(data.get('version'))};"
                " write it again with this version of attnpass"
            )
        sites = {name: _entry(name, raw, path) for name, raw in data["sites"].items()}
        extras = {key: data.get(key, {}) for key in ("tiles", "measured", "made_by")}
        for key, value in extras.items():
            if not isinstance(value, dict):
                raise PlanError(f"expected '{key}' in {path} to be an object, got {shown(value)}")
        beside = path
        if tensors is None:
            beside, tensors = _tensors(data, path)
        found = cls(sites, *split_tensors(tensors, sites, beside), **extras)
        found.check_values(beside)
        return found

    def check_values(self, path: Path) -> None:
        """Check that sites of a model have their forms' parameters; ``path`` names them in errors.

        Raises:
            PlanError: a site has none.
        """
        for name, entry in self.sites.items():
            if entry.needs_values and not self.values.get(name):
                raise PlanError(
                    f"expected the parameters of {name} ({entry.form}) for {path}, got none;"
                    " export the plan again, or make them by Plan.initialise"
                )


def _tensors(data: Mapping[str, Any], path: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that holds a plan's tensors, and the tensors; none where the plan names none."""
    if "parameters" not in data and "digest" not in data:
        return path, {}
    name, digest = data.get("parameters"), data.get("digest")
    if not (isinstance(name, str) and name and isinstance(digest, str)):
        raise PlanError(
            f"expected 'parameters' with their 'digest' in {path}, got {shown(name)} and"
            f" {shown(digest)}; export the plan again"
        )
    beside = path.parent / Path(name).name
    tensors = read_tensors(beside)
    if digest_tensors(tensors) != digest:
        raise PlanError(
            f"expected the parameters that {path} was saved with in {beside}, got others;"
            " export the plan again"
        )
    return beside, tensors


def _parameters_of(path: Path) -> tuple[str, str] | None:
    """The name and digest of the parameters of the plan that is at ``path`` now."""
    try:
        data = parse_json(read_file(path, LARGEST))
        name, digest = data["parameters"], data["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (Path(name).name, digest) if isinstance(name, str) else None


def _beside(path: Path, digest: str, old: tuple[str, str] | None) -> Path:
    """The file for parameters of a digest: the one that holds them already, else a new one."""
    stem = path.with_suffix("") if path.suffix == ".json" else path
    plain = stem.with_name(f"{stem.name}.safetensors")
    if old is not None and old[1] == digest:
        return path.with_name(old[0])
    return stem.with_name(f"{stem.name}.{digest}.safetensors") if plain.exists() else plain


def _entry(name: str, raw: object, path: Path) -> Entry:
    """One validated entry of a plan file."""
    if not isinstance(raw, dict) or raw.get("form") not in FORMS:
        got = raw.get("form") if isinstance(raw, dict) else raw
        raise PlanError(
            f"expected a form of {', '.join(FORMS)} at {name} in {path}, got {shown(got)}"
        )
    options, fits, weights = raw.get("options", {}), raw.get("fits", {}), raw.get("weights", "")
    for key, value in (("options", options), ("fits", fits)):
        if not isinstance(value, dict):
            raise PlanError(
                f"expected '{key}' to be an object at {name} in {path}, got {shown(value)}"
            )
    if not isinstance(weights, str):
        raise PlanError(f"expected a digest of weights at {name} in {path}, got {shown(weights)}")
    try:
        forms.check_options(raw["form"], options)
    except OptionError as error:
        raise PlanError(f"{error} (at {name} in {path})") from error
    return Entry(raw["form"], dict(options), dict(fits), weights)
