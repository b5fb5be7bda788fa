"""A child's end, output and time are known, whatever it does."""

from __future__ import annotations

import subprocess
import sys

import house
import pytest

PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import forked
ACTS = {{
    "prints": lambda: print("out") or print("err", file=sys.stderr),
    "exits": lambda: sys.exit(3),
    "raises": lambda: 1 / 0,
    "hangs": lambda: time.sleep(60),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}}
e = forked.run(ACTS[sys.argv[1]], 0.5)
print([e.code, e.out.strip(), e.err.strip()[-17:], e.late])
"""


@pytest.mark.parametrize(
    ("act", "found"),
    [
        ("prints", [0, "out", "err", False]),
        ("exits", [3, "", "", False]),
        ("raises", [70, "", " division by zero", False]),
        ("hangs", [-9, "", "", True]),
        ("killed", [-9, "", "", False]),
    ],
)
def test_how_a_child_ends(act, found):
    program = PROGRAM.format(tests=str(house.ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, "-c", program, act], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == str(found), done.stderr
