"""The documents as text, the committed results, and the scripts whose tables the pages show."""

from __future__ import annotations

import json
import sys
from typing import Any

import house

sys.path[:0] = [str(house.ROOT / "examples"), str(house.ROOT / "benchmarks")]

import encoder_speed  # noqa: E402
import recovery  # noqa: E402
import search  # noqa: E402
import train_forms  # noqa: E402

__all__ = ["encoder_speed", "flat", "page", "recovery", "result", "search", "train_forms"]


def page(name: str) -> str:
    """A page by its path from the root of the repository."""
    return (house.ROOT / name).read_text()


def flat(name: str) -> str:
    """The same with line breaks as spaces."""
    return " ".join(page(name).split())


def result(name: str) -> dict[str, Any]:
    """What a benchmark left in ``benchmarks/results``."""
    found: dict[str, Any] = json.loads((house.ROOT / "benchmarks" / "results" / name).read_text())
    return found
