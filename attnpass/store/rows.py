"""Rows as they were read, decoded: another program may have left anything in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnpass.errors import PlanError
from attnpass.plan import Plan


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

    Raises:
        PlanError: the row is damaged, or holds another plan than its hash says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    corrupt = PlanError(
        f"expected plan {row['hash']} in {path}, got a corrupt row; export or import it again"
    )
    try:
        tensors = load(row["parameters"]) if row["parameters"] else {}
        document, place = json_object(row["document"]), path.with_suffix(f".{row['hash']}")
        plan = Plan.from_dict(document, place, tensors)
    except (ValueError, KeyError, SafetensorError, PlanError) as error:
        raise corrupt from error
    # a plan that re-emits softmax was stored under a hash of its own
    if row["hash"] not in (plan.hash, _re_emitting(plan).hash):
        raise corrupt
    return plan


def _re_emitting(plan: Plan) -> Plan:
    other = plan.copy()
    other.round_trip = True
    return other
