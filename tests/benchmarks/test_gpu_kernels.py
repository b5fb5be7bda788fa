"""The GPU benchmark itself runs: at sizes that show nothing about speed, under the interpreter.

Slow: whole benchmark parts, so that a session on a GPU does not fail for a script's sake.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import house
import pytest

pytestmark = pytest.mark.slow

SCRIPT = house.ROOT / "benchmarks" / "gpu_kernels.py"


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("kernels", {"flash", "sigmoid", "sigmoid_tanh", "relu", "softmax"}),
        ("backward", {"flash", "sigmoid", "relu", "softmax"}),
        ("decode", {"math", "sigmoid", "relu", "softmax"}),
        ("hydra", {"copy", "hydra", "hydra backward"}),
        ("phi", {"phi", "copy"}),
        ("models", {"inductor", "sigmoid", "relu", "hydra"}),
    ],
)
def test_every_part_writes_its_result(part, names, tmp_path):
    path = tmp_path / "out.json"
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(house.ROOT)}
    command = [sys.executable, str(SCRIPT), str(path), part, "--tiny"]
    subprocess.run(command, env=env, check=True)
    found = json.loads(path.read_text())
    assert found["ceilings"]["copy_gb_per_s"] > 0
    for row in found["rows"]:
        assert all(row[name]["ms"] > 0 for name in names)
