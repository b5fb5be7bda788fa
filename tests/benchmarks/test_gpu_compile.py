"""The Triton kernels compiled for chips that are not here, without the interpreter.

Slow: real compiles. They show what the interpreter cannot: registers, spills, matrix instructions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import house
import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = house.ROOT / "benchmarks"

PROGRAM = """
import json, sys
import torch
import gpu_compile
from attnpass.kernels.tile import Tile
half, full, rows = torch.bfloat16, torch.float32, {}
rows["sm90"] = gpu_compile.pointwise(90, 64, half, "sigmoid", causal=True)
rows["sm80"] = gpu_compile.pointwise(80, 64, half, "relu")
rows["float32"] = gpu_compile.pointwise(90, 64, full, "gelu", directions=("forward",))
tile = Tile(block_m=64, block_n=32, stages=3, persistent=1)
rows["persistent"] = gpu_compile.pointwise(
    90, 80, half, "sigmoid_tanh", tile=tile, directions=("forward",)
)
rows["hydra"] = gpu_compile.hydra(90, 64, half, 12, True)
json.dump(rows, sys.stdout)
"""


@pytest.fixture(scope="module")
def compiled():
    env = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{house.ROOT}",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def test_every_kernel_is_compiled(compiled):
    three = ["pointwise_forward", "pointwise_queries", "pointwise_keys"]
    names = {k: [r["kernel"] for r in rows] for k, rows in compiled.items()}
    assert names["sm90"] == names["sm80"] == three
    hydra = {"hydra_sums", "hydra_apply", "hydra_queries", "hydra_keys"}
    assert set(names["hydra"]) == hydra


def test_default_tiles_keep_what_they_work_on_in_registers(compiled):
    # up to 16 of 255 registers may wait outside the loops
    for name in ("sm90", "sm80", "hydra"):
        assert max(r["spilled"] for r in compiled[name]) <= 64


def test_matrix_units_and_copies_of_the_chip_are_used(compiled):
    for row in compiled["sm90"]:
        assert row["wgmma"] > 0 and row["tma"] > 0 and row["mma"] == 0
    for row in compiled["sm80"]:
        assert row["mma"] > 0 and row["async copies"] > 0 and row["wgmma"] == row["tma"] == 0
    # float32 stays float32: no matrix unit multiplies it without rounding
    assert compiled["float32"][0]["wgmma"] == compiled["float32"][0]["mma"] == 0


def test_the_estimates_follow_the_compiler(compiled):
    for name in ("sm90", "sm80", "persistent", "float32"):
        rows = compiled[name]
        for forward in (True, False):
            largest = [r for r in rows if (r["kernel"] == "pointwise_forward") == forward]
            if not largest:
                continue
            shared = max(r["shared"] for r in largest)
            # never too little, or a default tile would not start; scores may not be there
            assert shared <= largest[0]["estimated shared"] <= 1.75 * shared
            assert max(r["registers"] for r in largest) >= largest[0]["estimated registers"]
