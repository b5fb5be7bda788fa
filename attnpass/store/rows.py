"""Rows as they were read, decoded: another program may have left anything in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from attnpass.errors import PlanError
from attnpass.plan import Plan
from attnpass.store.tensor_files import TensorFiles


class MissingTensorsError(PlanError):
    """A file with tensors of a stored plan that is missing or damaged."""


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """A run with its JSON columns decoded; an empty object where a column is corrupt."""
    parsed = {name: json_object(row[name]) or {} for name in ("settings", "context", "result")}
    return {**row, **parsed}


def json_object(text: str | None) -> dict[str, Any] | None:
    """The JSON object of a column; None where it is empty, corrupt, or other JSON."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def stored_plan(row: Mapping[str, Any], path: Path) -> Plan:
    """A stored plan; its parameters go through safetensors, never through pickle.

    ``path`` is that of the database. Rows of the first version hold all parameters themselves.

    Raises:
        PlanError: the row or one of its files is damaged, or holds another plan than its hash
            says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    corrupt = PlanError(
        f"expected plan {row['hash']} in {path}, got a corrupt row; export or import it again"
    )
    try:
        tensors = load(row["parameters"]) if row["parameters"] else {}
        tensors |= _in_files(row, path)
        document, place = json_object(row["document"]), path.with_suffix(f".{row['hash']}")
        plan = Plan.from_dict(document, place, tensors)
    except MissingTensorsError:
        raise
    except (ValueError, KeyError, SafetensorError, PlanError) as error:
        raise corrupt from error
    if not _has_hash(plan, row["hash"]):
        raise corrupt
    return plan


def _has_hash(plan: Plan, name: str) -> bool:
    """Whether a plan, or the same that re-emits softmax, has a hash."""
    if plan.hash == name:
        return True
    plan.round_trip = True
    found = plan.hash == name
    plan.round_trip = False
    return found


def named_files(text: str | None) -> list[str]:
    """The digests that the column ``files`` of a plan names; none where it is empty or damaged."""
    try:
        value = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    whole = isinstance(value, list) and all(isinstance(x, str) for x in value)
    return [x for x in value if re.fullmatch("[0-9a-f]{64}", x)] if whole else []


def _in_files(row: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a plan that lie in files.

    Raises:
        MissingTensorsError: a file is missing or damaged.
    """
    files, found = TensorFiles(path), dict[str, Tensor]()
    for name in named_files(row.get("files")):
        try:
            found |= files.load(name)
        except PlanError as error:
            raise MissingTensorsError(
                f"expected the tensors of plan {row['hash']} in {files.path(name)}, got"
                f" {'a damaged file' if files.path(name).exists() else 'no such file'}; import"
                " the plan again, or run its tune command again"
            ) from error
    return found
