"""The tensors of a plan file, read within limits, as the forms' parameters and the deltas.

A form's parameter is stored under ``site|name``, a delta's under ``site|weight|part``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attnpass.errors import PlanError
from attnpass.files import opened, reason
from attnpass.fingerprint import digest_weights
from attnpass.plan.delta import Delta
from attnpass.plan.entry import Entry
from attnpass.plan.parameters import Deltas, Values
from attnpass.text import shown

LARGEST_FILE = 2**34
"""Bytes of a file of parameters; beyond it the changes to the weights should be of low rank."""

LARGEST_TENSOR = 2**28
"""Numbers in one tensor: the weights of the largest published models have as many."""

LARGEST_VALUE = 1e6
"""Parameters and changes of weights are of order 1; what is beyond was never trained."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def digest_tensors(held: Mapping[str, Tensor]) -> str:
    """Digest of all tensors in the order of their names, 16 hex digits."""
    return digest_weights(held[key] for key in sorted(held))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        PlanError: it cannot be read, is no regular file, or too large.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with opened(path, LARGEST_FILE) as descriptor:
            # by its descriptor: what was checked is what is read, and a path of any bytes will do
            held: dict[str, Tensor] = load_file(f"/dev/fd/{descriptor}")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise PlanError(
            f"expected the plan's parameters at {path}, got: {reason(error)};"
            " copy them beside the plan, or export it again"
        ) from error
    return held


def split_tensors(
    held: Mapping[str, Tensor], sites: Mapping[str, Entry], path: Path
) -> tuple[Values, Deltas]:
    """Stored tensors as the forms' parameters and the deltas of the plan's sites, checked.

    Raises:
        PlanError: another name, dtype or shape than a plan has, or values that no training gives.
    """
    values: Values = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in held.items():
        site, *weight, name = _names(key, sites, path)
        _check(key, value, path)
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


def _names(key: str, sites: Mapping[str, Entry], path: Path) -> list[str]:
    """Site, weight where there is one, and name of a tensor; a site's own name may hold ``|``."""
    parts = key.split("|")
    for n in range(1, min(len(parts), 10)):
        site = "|".join(parts[:n])
        if site in sites and parts[-1]:
            return [site, *parts[n:]]
    raise PlanError(
        f"expected parameters of the plan's sites in {path}, named site|name, got {shown(key)}"
    )


def _check(key: str, value: Tensor, path: Path) -> None:
    """Refuse a tensor that is no parameter."""
    if value.dtype not in DTYPES:
        raise PlanError(f"expected float parameters in {path}, got {value.dtype} at {key}")
    if value.numel() > LARGEST_TENSOR:
        raise PlanError(
            f"expected at most {LARGEST_TENSOR:,} numbers at {key} in {path}, got"
            f" {value.numel():,}"
        )
    largest = float(torch.linalg.vector_norm(value, torch.inf)) if value.numel() else 0.0
    # NaN fails the comparison too
    if not largest <= LARGEST_VALUE:
        raise PlanError(
            f"expected numbers of at most {LARGEST_VALUE:g} at {key} in {path}, got"
            f" {largest:g}; the file is damaged, export the plan again"
        )
