"""Measured tiles: never a wrong result, never slower than the default, never taken twice."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
import torch
from tuning import QUIET

from attnpass import environment
from attnpass.errors import MeasureError
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.tile import Tile
from attnpass.store import Store
from attnpass.tuner.tiles.attention_call import Call, Shape

# the module, to replace its clock and its calls
tiles = importlib.import_module("attnpass.tuner.tiles.study")
SMALL = Shape(2, 4, 2, 70, 90, 8, 8)
HERE = environment.kernel_context()


class Clock:
    """Stands in for the interleaver: the time of a tile is given by ``cost``."""

    def __init__(self, cost, noise=0.0):
        self.cost, self.noise, self.calls = cost, noise, 0

    def __call__(self, runs, *, rounds, warmup=3, stopwatch=None):
        out = []
        for timed in runs:
            (tile,) = timed.args
            self.calls += 1
            wobble = [1 + self.noise * ((self.calls * 7 + i * 3) % 5 - 2) for i in range(rounds)]
            out.append([self.cost(tile) * w for w in wobble])
        return out


def searched(monkeypatch, cost, noise=0.0, error=lambda tile: 0.0, shape=SMALL, trials=30):
    monkeypatch.setattr(tiles, "interleave", Clock(cost, noise))
    monkeypatch.setattr(Call, "error", lambda self, tile, expected: error(tile))
    return tiles.search_tile(shape, trials=trials)


DEFAULT = Call(SMALL).default()


def test_the_fastest_tile_is_found_and_its_gain_is_told(monkeypatch):
    def cost(tile):
        return 1 + abs(tile.block_m - 32) / 16 + tile.block_n / 64

    found = searched(monkeypatch, cost)
    assert found["tile"]["block_m"] == 32
    assert found["tile"]["block_n"] == 32
    # which tile is the default depends on the processor
    assert found["gain"]["median"] == pytest.approx(cost(DEFAULT) / 1.5)
    assert len(found["trials"]) == len({json.dumps(t["tile"]) for t in found["trials"]}) == 30


def test_the_default_stays_where_all_others_are_slower(monkeypatch):
    found = searched(monkeypatch, lambda t: 1.0 if t == DEFAULT else 1.5)
    assert found["tile"] == found["default"] == DEFAULT.as_dict()


def test_a_gain_within_the_noise_is_none(monkeypatch):
    found = searched(monkeypatch, lambda t: 1.0 if t == DEFAULT else 0.97, noise=0.05)
    assert found["tile"] == DEFAULT.as_dict()
    assert found["floor"] > 0.03


def test_a_fast_tile_with_a_wrong_result_is_never_chosen(monkeypatch):
    def wrong(tile):
        return 0.5 if tile.block_m == 16 else 0.0

    found = searched(monkeypatch, lambda t: t.block_m, error=wrong)
    assert found["tile"]["block_m"] == 32
    outcomes = {t["tile"]["block_m"]: t["outcome"] for t in found["trials"]}
    assert outcomes[16] == "inaccurate"
    assert not any("speedup" in t for t in found["trials"] if t["tile"]["block_m"] == 16)


def test_a_tile_that_fails_is_an_outcome(monkeypatch):
    def fails(tile):
        if tile.block_n == 32:
            raise RuntimeError("out of memory: tried 3 GiB\nmore")
        return 0.0

    found = searched(monkeypatch, lambda t: t.block_n, error=fails)
    assert found["tile"]["block_n"] == 64
    failed = [t for t in found["trials"] if t["tile"]["block_n"] == 32]
    assert failed[0]["outcome"] == "oom"
    assert failed[0]["why"] == "out of memory: tried 3 GiB"


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    clock, seen = Clock(lambda t: t.block_m), []
    monkeypatch.setattr(tiles, "interleave", clock)

    def error(self, tile, expected):
        seen.append(tile)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(Call, "error", error)
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(KeyboardInterrupt):
            tiles.tune([SMALL], store, QUIET, trials=8)
        first = seen[:4]
        tiles.tune([SMALL], store, QUIET, trials=8)
    # the fifth was never measured; nothing is measured twice
    assert len(set(seen)) == 8 and len(seen) == 9
    assert not set(seen[5:]) & set(first)


@pytest.fixture
def gpu_shape(monkeypatch):
    """A shape on a GPU of which only the limits are known, and its calls."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "capability", lambda: 90)
    monkeypatch.setattr(tiles, "events", lambda: None)
    monkeypatch.setattr(tiles.environment, "kernel_context", lambda kind: {"device": kind})
    shape = Shape.parse("1,4,1024,1024,128", dtype="bfloat16", device="cuda")
    tried = []

    class Fake:
        def __init__(self, shape, seed):
            self.shape = shape

        def default(self):
            return self.shape.default()

        def expected(self):
            return []

        def error(self, tile, expected):
            tried.append(tile)
            return 0.0

        def run(self, tile):
            raise AssertionError("nothing runs here")

    monkeypatch.setattr(tiles, "Call", Fake)
    monkeypatch.setattr(tiles, "interleave", Clock(lambda t: 1.0))
    return shape, tried


def test_a_tile_that_cannot_fit_is_pruned_before_it_is_compiled(gpu_shape):
    shape, tried = gpu_shape
    found = tiles.search_tile(shape, trials=80)
    rows = [(Tile(**t["tile"]), t["outcome"]) for t in found["trials"]]
    pruned = {t for t, outcome in rows if outcome == "pruned"}
    assert pruned and not pruned & set(tried)
    for tile, outcome in rows:
        fits = gpu.shared_bytes(tile, 128, 128, 2, "forward", 90) <= 227 * 1024
        small = gpu.registers(tile, 128, 128, "forward") <= gpu.REGISTERS[2]
        assert (outcome == "ok") == (fits and small)
    assert shape.default() in tried


def test_a_tile_that_takes_the_gpu_down_is_noted_and_not_tried_again(
    gpu_shape, tmp_path, monkeypatch
):
    shape, tried = gpu_shape
    default, dead = shape.default(), []

    def error(self, tile, expected):
        tried.append(tile)
        if tile != default and not dead:
            dead.append(tile)
        if dead == [tile]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 0.0

    def synchronize():
        if dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tiles.Call, "error", error)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(MeasureError, match="illegal memory access.*run the same command"):
            tiles.tune([shape], store, QUIET, trials=12)
        # another process: the GPU is there again
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        (row,) = tiles.tune([shape], store, QUIET, trials=12)
    assert tried.count(dead[0]) == 1
    outcomes = {str(Tile(**t["tile"])): t["outcome"] for t in row["trials"]}
    assert outcomes[str(dead[0])] == "crashed"


def test_plain_aten_is_a_candidate_for_float32_forward_alone(monkeypatch):
    def has(**change):
        shape = replace(SMALL, **change)
        found = searched(monkeypatch, lambda t: 1.0, shape=shape, trials=6)
        return any(t["tile"]["implementation"] == "aten" for t in found["trials"])

    assert has()
    assert not has(dtype="bfloat16")
    assert not has(direction="backward")
    assert not has(queries=2000, keys=2000)


def test_a_real_study_is_right_and_not_slower_than_the_default():
    found = tiles.search_tile(replace(SMALL, dtype="bfloat16"), trials=3)
    assert [t["outcome"] for t in found["trials"]] == ["ok"] * 3
    assert found["tile"] == found["default"] or found["gain"]["low"] > 1 + found["floor"]


def test_a_study_is_not_repeated_and_refresh_repeats_it(tmp_path, monkeypatch):
    clock = Clock(lambda t: t.block_m)
    monkeypatch.setattr(tiles, "interleave", clock)
    with Store(tmp_path / "a.db") as store:

        def tune(**more):
            return tiles.tune([SMALL, SMALL], store, QUIET, trials=8, **more)

        (first,) = tune()
        taken = clock.calls
        (again,) = tune()
        assert clock.calls == taken
        assert (first["source"], again["source"]) == ("measured", "cached")
        assert store.tiles(HERE) == {str(SMALL.kind): Tile(**first["tile"])}
        tune(refresh=True)
        assert clock.calls == 2 * taken
