"""What the database holds, checked before it is used: a damaged row is a miss, never an error.

Rows are JSON that another program, a full disk or an older version may have left. ``conforms``
compares a value with the annotation that the code using it relies on.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from attnpass.errors import StoreError
from attnpass.tuner.search.result import DistilledChoice, RunResult

Fields = Mapping[str, Any]
"""The fields of a JSON object that are used, each with the annotation that it must conform to."""

BASELINE: Fields = {
    "sizes": list[int],
    "selection": list[float],
    "held_out": list[float],
    "canary": Mapping[str, list[float] | float],
    "random": bool,
    "mark": str,
    "read": Mapping[str, str],
}
SCORES: Fields = {"scores": list[float]}
PARTLY: Fields = {**SCORES, "complete": bool}
TIMES: Fields = {"times": list[list[float]], "hashes": list[str]}
FAILURE: Fields = {"why": str, "limit": float}
OTHERS: Mapping[str, Fields] = {
    "divergence": {"divergence": float},
    "bank": get_type_hints(DistilledChoice),
    "recovered": {"plan": str, "steps": int, "seconds": float},
}
"""The fields of the other kinds of measurement."""


def fields_of(kind: str, value: Mapping[str, Any]) -> Fields:
    """The fields that a measurement of a kind and outcome must have."""
    if kind in ("latency", "ceiling"):
        return TIMES if value.get("outcome", "ok") in ("ok", "unreliable") else FAILURE
    if kind == "accuracy":
        if "scores" not in value:
            return BASELINE
        # held-out items are scored in full
        return PARTLY if "complete" in value else SCORES
    return OTHERS.get(kind, {})


def whole(kind: str, value: Mapping[str, Any]) -> bool:
    """Whether a stored measurement has all fields of its kind, finite, and times above 0."""
    wanted = fields_of(kind, value)
    if not all(name in value and conforms(value[name], wanted[name]) for name in wanted):
        return False
    numbers = list(_numbers([value[name] for name in wanted]))
    if wanted is TIMES and min(numbers, default=1) <= 0:
        return False
    # also of whole numbers that no float holds
    return all(abs(x) <= sys.float_info.max for x in numbers)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers anywhere in plain JSON."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, Mapping)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(inner)


def conforms(value: Any, kind: Any) -> bool:
    """Whether plain JSON, or a record made of it, is what an annotation says."""
    if kind is Any:
        return True
    if kind in (float, int):
        return isinstance(value, (int, float) if kind is float else int) and not (
            isinstance(value, bool)
        )
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return isinstance(value, kind) and all(
            conforms(getattr(value, f.name), hints[f.name]) for f in fields(kind)
        )
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(conforms(value, one) for one in inner)
    if origin in (list, Sequence):
        return isinstance(value, (list, tuple)) and all(conforms(x, inner[0]) for x in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            conforms(k, inner[0]) and conforms(x, inner[1]) for k, x in value.items()
        )
    return isinstance(value, types.NoneType if kind is None else kind)


def read_result(value: Any, run: str) -> RunResult:
    """The stored result of a run, checked.

    Raises:
        StoreError: it is not what a run stores.
    """
    try:
        result = RunResult.from_dict(value)
        hints = get_type_hints(RunResult)
        bad = [
            f.name for f in fields(result) if not conforms(getattr(result, f.name), hints[f.name])
        ]
        bad += [] if all(_is_site(x) for x in result.sites) else ["sites"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        bad = [f"{type(error).__name__}: {error}"]
    if bad:
        raise StoreError(
            f"expected the result of run {run}, got a damaged one ({', '.join(bad)});"
            " run its tune command again"
        )
    return result


def _is_site(x: Mapping[str, Any]) -> bool:
    legal = x.get("legal")
    return (
        isinstance(x.get("name"), str)
        and isinstance(legal, Mapping)
        and all(no is None or isinstance(no.get("code"), str) for no in legal.values())
    )
