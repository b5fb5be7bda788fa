"""A sample of the hostile files and calls, and that the oracle sees what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import house
import pytest
from forked import Ended
from hostile.case import Case, fault

CASE = Case("call: show x", lambda folder: None, told="got 'x'", absent=("out.json",))
GOOD = "attnpass: expected a plan, got 'x'\n"


@pytest.mark.slow
def test_every_forty_fifth_case_ends_well():
    """All cases run by ``hostile_files.py``; these are spread over all kinds."""
    done = subprocess.run(
        [sys.executable, "hostile_files.py", "--every", "45"],
        cwd=house.ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (Ended(1, "", GOOD, False, 1.0), ""),
        (Ended(1, "", GOOD, True, 1.0), "no end"),
        (Ended(0, "", "got 'x'", False, 1.0), "exit code 0"),
        (Ended(1, "", GOOD + GOOD, False, 1.0), "more than one line"),
        (Ended(1, "", f"warning\n{GOOD}", False, 1.0), "more than one line"),
        (Ended(1, "", "", False, 1.0), "no line that says"),
        (Ended(1, "Traceback (most recent call last):", GOOD, False, 1.0), "a traceback"),
        (Ended(1, "\x1b[2J", GOOD, False, 1.0), "character"),
        (Ended(1, "", GOOD.replace("'x'", "'y'"), False, 1.0), "nothing on"),
        (Ended(1, "", f"{GOOD[:-1]}; ATTNPASS_TRACE=1 shows\n", False, 1.0), "not ours"),
        (Ended(1, "", GOOD, False, 9000.0), "MiB"),
    ],
)
def test_the_oracle_sees_what_is_wrong(ended, problem, tmp_path):
    found = fault(CASE, ended, tmp_path)
    assert found.startswith(problem) if problem == "" else problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize("name", ["plan.json.4711", "out.json"])
def test_the_oracle_sees_files_that_are_left(name, tmp_path):
    (Path(tmp_path) / name).write_text("half")
    assert "left behind" in fault(CASE, Ended(1, "", GOOD, False, 1.0), tmp_path)
