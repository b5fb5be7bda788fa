"""The command that measures tiles."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from tuning import run

from attnpass import environment
from attnpass.kernels.tile import Tile
from attnpass.store import measured_tiles
from attnpass.tuner.tiles import Shape

HERE = environment.kernel_context()


def test_the_command_measures_stores_and_finds_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(HERE["threads"]))
    path = tmp_path / "a.db"
    asked = ("tiles", "--shape", "1,2,40,40,8", "--dtype", "bfloat16", "--trials", "2", "--json")
    rows = [json.loads(run(*asked, db=path).stdout)["tiles"][0] for _ in range(2)]
    assert [r["source"] for r in rows] == ["measured", "cached"]
    assert rows[0]["shape"] == asdict(Shape(1, 2, 2, 40, 40, 8, 8, "bfloat16"))
    assert measured_tiles(path, HERE) == {rows[0]["class"]: Tile(**rows[0]["tile"])}
    table = run("tiles", "--shape", "1,2,40,40,8", "--dtype", "bfloat16", "--trials", "2", db=path)
    assert "sigmoid forward 2x64x64x8 bfloat16 full" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected either TASK or --shape B,H,T,S,d, got both or neither"),
        (("digits", "--shape", "1,1,1,1,1"), "got both or neither"),
        (("--shape", "1,2"), "expected --shape B,H,T,S,d"),
        (("--shape", "1,1,8,8,8", "--dtype", "int8"), "expected dtype of float32"),
        (("--shape", "1,1,8,8,8", "--trials", "0"), "expected --trials >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, arguments, message):
    done = run("tiles", *arguments, db=tmp_path / "a.db")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
