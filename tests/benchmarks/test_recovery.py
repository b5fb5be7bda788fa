"""The recovery benchmark goes on where it stopped and converts the layers it says."""

from __future__ import annotations

import json
import sys

import pytest
from recovery_problems import TINY
from scripts import recovery

import attnpass
from attnpass.tuner.measure import accuracy


# whole runs of the script on a tiny task: rows are kept, completed, refused
@pytest.mark.slow
def test_the_recovery_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "TASKS", {"digits": TINY})
    monkeypatch.setattr(accuracy, "HELD_OUT", 30)
    out = tmp_path / "rows.json"

    def run(stages: str) -> list[dict]:
        command = ["recovery.py", "digits", "--forms", "skipat", "--seeds", "1", "--steps", "2"]
        monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), "--stages", stages])
        recovery.main()
        return json.loads(out.read_text())["rows"]

    (first,) = run("calibrate")
    rows = run("calibrate,both")
    assert rows[0] == first and [r["stage"] for r in rows] == ["calibrate", "both"]
    assert rows[1]["steps"] == 2 and rows[1]["items"] == 40
    halves = rows[0]["errors"]["halves"]
    assert sorted(halves) == ["blocks.1.attn", "blocks.2.attn"] and len(set(halves.values())) == 2
    assert rows[0]["sites"] == [min(halves, key=halves.__getitem__)]
    assert len(recovery.table(json.loads(out.read_text()))) == 3
    # what learned from other items is another row
    result = json.loads(out.read_text())
    result["rows"][1]["learned_from"] += 1
    out.write_text(json.dumps(result))
    assert run("calibrate,both")[:2] == result["rows"] and len(run("both")) == 3
    assert len(recovery.table(json.loads(out.read_text()))) == 4
    # what other items judged is no row of this file
    monkeypatch.setattr(recovery, "EVERY", {"digits"})
    monkeypatch.setattr(recovery, "WATCHED", {"tiny": (1, 10)})
    with pytest.raises(SystemExit, match="judged by 50 items .* got 40; choose another file"):
        run("local")


# whole runs of the script on a tiny task: plans of every kind of design
@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "around"),
    [("skipat+sigmoid", "sigmoid"), ("skipat r=0.5", None), ("half-hydra", None)],
)
def test_the_recovery_benchmark_converts_half_of_the_layers(design, around, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "TASKS", {"digits": TINY})
    monkeypatch.setattr(accuracy, "HELD_OUT", 30)
    command = "recovery.py digits --seeds 1 --steps 2 --stages global --rounds 0"
    folder, out = tmp_path / "plans", tmp_path / "rows.json"
    more = [f"--forms={design}", f"--plans={folder}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", [*command.split(), *more])
    recovery.main()
    (row,) = json.loads(out.read_text())["rows"]
    plan = attnpass.Plan.load(folder / f"{recovery._name(row)}.json")
    forms = {name: entry.form for name, entry in plan.sites.items()}
    halves = row["errors"]["halves"]
    half = min(halves, key=halves.__getitem__).split()
    assert 2 * len(half) <= len(forms)
    for name, form in forms.items():
        assert form == (recovery.HALF[design][0] if name in half else around or "softmax")
        assert name not in half or plan.sites[name].options == (recovery.HALF[design][1] or {})
    assert row["sites"] == [name for name, form in forms.items() if form != "softmax"]
