"""A few random points at which processes are killed; ``kills.py`` tries hundreds."""

from __future__ import annotations

import subprocess
import sys

import house
import pytest


@pytest.mark.slow
def test_one_point_of_each_kind():
    """In a process of its own: its children are forked, which a process with threads must not."""
    done = subprocess.run(
        [sys.executable, "kills.py", "--points", "5", "--seed", "7"],
        cwd=house.ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
