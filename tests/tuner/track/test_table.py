"""One row per judged plan, in CSV and in JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from rows_of_plans import ROWS, result_of

from attnpass.errors import OptionError, OutputError
from attnpass.tuner.track.table import COLUMNS, flat, write_table


def test_a_row_holds_what_is_known():
    scored, judged = (flat(row, 0.02) for row in ROWS)
    assert scored == {
        "plan": "b" * 16,
        "state": "over the limit",
        "estimate_ms": 20.0,
        "selection_items": 400,
        "selection_score": 0.9,
        "selection_drop": 0.05,
        "selection_upper": 0.07,
    }
    assert judged["state"] == "proven" and judged["measured_ms"] == 31.5
    assert (judged["speed_up"], judged["held_out_upper"], judged["recovery_steps"]) == (
        1.3,
        0.02,
        9,
    )
    assert set(judged) <= set(COLUMNS)


def test_states():
    _, row = ROWS
    assert flat(row, 0.01)["state"] == "not proven"
    assert flat(replace(row, held_out=None), 0.02)["state"] == "allowed"


def test_both_files_hold_every_plan_by_its_estimate(tmp_path):
    table = write_table(result_of(ROWS[::-1]), tmp_path / "new" / "a.csv")
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [r["plan"][0] for r in found] == ["b", "a"]
    assert list(found[0]) == [*COLUMNS, "one", "two"]
    assert (found[0]["one"], found[0]["two"], found[0]["measured_ms"]) == ("hydra", "relu", "")
    same = json.loads(write_table(result_of(ROWS), tmp_path / "a.json").read_text())
    assert [{k: "" if v is None else str(v) for k, v in r.items()} for r in same] == found


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(OptionError, match=r"ends in \.csv or \.json, got 'a\.xlsx'"):
        write_table(result_of(ROWS), tmp_path.joinpath("a.xlsx").relative_to(tmp_path))
    with pytest.raises(OptionError, match="expected a run with judged plans, got r1"):
        write_table(result_of([]), tmp_path / "a.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected to write"):
        write_table(result_of(ROWS), tmp_path / "file" / "a.csv")
