"""Measurements as tables: what differs stands first."""

from __future__ import annotations

import io

from rich.console import Console

from attnpass.store import Comparison
from attnpass.tuner.show import comparison_table, measurements_table

ROW = {
    "key": "0123456789abcdef" * 2,
    "created": "2026-11-30T10:00:00Z",
    "run": "cafe",
    "kind": "latency",
    "subject": "p",
    "outcome": "ok",
}


def shown(table) -> str:
    out = io.StringIO()
    Console(file=out, width=250).print(table)
    return out.getvalue()


def cells(text: str) -> list[list[str]]:
    rows = [x for x in text.splitlines() if x.startswith("│")]
    return [[c.strip() for c in row.split("│")[1:-1]] for row in rows]


def test_measurements_have_their_keys_and_how_many_there_are():
    rows = [ROW, {**ROW, "run": None, "subject": "finalists " + "0123456789abcdef " * 8}]
    text = shown(measurements_table(rows, 9))
    assert "9 measurements, the 2 newest" in text and "attnpass results --why KEY" in text
    first, second = cells(text)
    assert first == ["0123456789ab", "2026-11-30T10:00:00Z", "cafe", "latency", "p", "ok"]
    assert second[2] == "-" and len(second[4]) <= 60 and "..." in second[4]


def test_what_differs_stands_first():
    row = {**ROW, "context": {"a": 1, "torch": "2", "shapes": [1, 2]}}
    other = {**ROW, "key": "f" * 32, "context": {"a": 1, "torch": "1"}}
    text = shown(comparison_table(Comparison(row, other)))
    assert cells(text) == [["shapes", "[1, 2]", "absent"], ["torch", "2", "1"], ["a", "1", "1"]]
    assert "0123456789ab, 2026-11-30T10:00:00Z" in text and "ffffffffffff" in text
    assert "shapes, torch differs from the newest other" in text


def test_one_alone_is_all_that_it_depends_on():
    text = shown(comparison_table(Comparison({**ROW, "context": {"a": "x" * 200}}, None)))
    ((name, value),) = cells(text)
    assert name == "a" and len(value) == 60 and "there is no other" in text
