"""Measured tiles: never a wrong result, never slower than the default, never a wrong hit."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, replace

import pytest
import torch
from test_cli import TINY, run
from torch import nn

from attnpass import environment
from attnpass.errors import MeasureError, OptionError
from attnpass.kernels import reference
from attnpass.kernels.cpu import pointwise_launch
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.select import default_tile
from attnpass.kernels.tile import ShapeClass, Tile
from attnpass.plan.plan import Plan
from attnpass.store import Store, measured_tiles
from attnpass.task import load_task
from attnpass.tuner.progress import Voice
from attnpass.tuner.tiles import study as tiles
from attnpass.tuner.tiles.attention_call import Call, Shape, shapes_of

SMALL = Shape(2, 4, 2, 70, 90, 8, 8)
HERE = environment.kernel_context()
TILE = Tile(block_m=16, block_n=64, heads=2)


# --- a call and its check ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"causal": True},
        {"mask": "columns"},
        {"mask": "rows", "causal": True},
        {"dtype": "bfloat16", "h": "relu"},
        {"dtype": "float16"},
        {"value_dim": 5},
        {"direction": "backward", "mask": "columns"},
        {"direction": "backward", "causal": True, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_right_tile_passes_and_a_wrong_result_does_not(change, monkeypatch):
    call = Call(replace(SMALL, **change))
    expected = call.expected()
    assert call.error(TILE, expected) <= tiles.ALLOWED[call.shape.dtype]
    right = call.run
    monkeypatch.setattr(call, "run", lambda tile: [x * 1.05 for x in right(tile)])
    assert call.error(TILE, expected) > tiles.ALLOWED[call.shape.dtype]


def test_the_class_of_a_shape_is_that_of_its_tensors():
    for change in ({}, {"causal": True}, {"mask": "rows"}, {"mask": "columns"}, {"value_dim": 5}):
        shape = replace(SMALL, **change)
        call = Call(shape)
        met = ShapeClass.of(call.q, call.k, call.v, None, call.keep, shape.h, shape.causal)
        assert shape.kind == met


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "expected dtype of float32, bfloat16, float16, got 'float64'"),
        ({"h": "softmax"}, "expected h of sigmoid, .*, got 'softmax'"),
        ({"mask": "causal"}, "expected mask of none, columns, rows, got 'causal'"),
        ({"queries": 0}, "expected sizes >= 1"),
        ({"heads": 3}, "heads a multiple of kv heads"),
    ],
)
def test_a_bad_shape_says_what_is_wrong(change, message):
    with pytest.raises(OptionError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize("text", ["1,2,3,4", "1,2,3,4,x", "", "1,2,3,4,5,6"])
def test_a_shape_is_five_numbers(text):
    with pytest.raises(OptionError, match="expected --shape B,H,T,S,d"):
        Shape.parse(text)


def test_the_default_is_what_runs_where_nothing_was_measured():
    few = Call(replace(SMALL, queries=8, keys=8))
    assert few.default() == Tile("aten")
    assert Call(replace(few.shape, dtype="bfloat16")).default() == default_tile("cpu", 8)
    assert Call(replace(few.shape, direction="backward")).default().block_m == 256


def test_shapes_of_a_task():
    task = load_task(TINY)
    found = shapes_of(task)
    assert {s.h for s in found} == {"sigmoid", "relu"}
    assert len({s.kind for s in found}) == len(found) == 2


# --- the study, with times that are known -----------------------------------------------------


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
    return tiles.study(shape, trials=trials)


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
            tiles.tune([SMALL], store, Voice(True), trials=8)
        first = seen[:4]
        tiles.tune([SMALL], store, Voice(True), trials=8)
    # the fifth was never measured; nothing is measured twice
    assert len(set(seen)) == 8 and len(seen) == 9
    assert not set(seen[5:]) & set(first)


# --- on a GPU, which is not here --------------------------------------------------------------


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
    found = tiles.study(shape, trials=80)
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
            tiles.tune([shape], store, Voice(True), trials=12)
        # another process: the GPU is there again
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        (row,) = tiles.tune([shape], store, Voice(True), trials=12)
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
    found = tiles.study(replace(SMALL, dtype="bfloat16"), trials=3)
    assert [t["outcome"] for t in found["trials"]] == ["ok"] * 3
    assert found["tile"] == found["default"] or found["gain"]["low"] > 1 + found["floor"]


# --- what is stored ---------------------------------------------------------------------------


def test_a_study_is_not_repeated_and_refresh_repeats_it(tmp_path, monkeypatch):
    clock = Clock(lambda t: t.block_m)
    monkeypatch.setattr(tiles, "interleave", clock)
    with Store(tmp_path / "a.db") as store:

        def tune(**more):
            return tiles.tune([SMALL, SMALL], store, Voice(True), trials=8, **more)

        (first,) = tune()
        taken = clock.calls
        (again,) = tune()
        assert clock.calls == taken
        assert (first["source"], again["source"]) == ("measured", "cached")
        assert store.tiles(HERE) == {str(SMALL.kind): Tile(**first["tile"])}
        tune(refresh=True)
        assert clock.calls == 2 * taken


@pytest.mark.parametrize("field", sorted(HERE))
def test_a_tile_of_another_context_is_a_miss(tmp_path, field):
    with Store(tmp_path / "a.db") as store:
        store.put_tile("a class", {**HERE, field: "other"}, TILE, {})
        assert store.tiles(HERE) == {}
        store.put_tile("a class", HERE, TILE, {})
        assert store.tiles(HERE) == {"a class": TILE}


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"block_m": 0}', '{"rows": 3}', '{"implementation": "cuda"}']
)
def test_a_corrupt_tile_is_a_miss(tmp_path, text):
    path = tmp_path / "a.db"
    with Store(path) as store:
        store.put_tile("good", HERE, TILE, {})
        store.put_tile("bad", HERE, TILE, {})
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE tiles SET tile = ? WHERE context LIKE '%bad%'", [text])
    assert measured_tiles(path, HERE) == {"good": TILE}


def test_no_database_means_no_tiles_and_makes_none(tmp_path):
    assert measured_tiles(tmp_path / "a.db", HERE) == {}
    assert not (tmp_path / "a.db").exists()


# --- what the backend and a plan do with it ---------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2)


# bfloat16 takes the operator on every machine
CLASS = "sigmoid forward 2x64x64x8 bfloat16 full"


@pytest.fixture
def tile_that_runs(monkeypatch):
    """A function of options: the tile with which a compiled model calls the kernel, its output."""
    seen = []

    def spy(call):
        seen.append(call.tile.as_list())
        return right(call)

    right = pointwise_launch.pointwise
    monkeypatch.setattr(pointwise_launch, "pointwise", spy)

    def compiled(**options):
        seen.clear()
        out = output(**options)
        assert len(seen) == 1
        return seen[0], out

    return compiled


def output(**options):
    # tiles are read when a graph is compiled: compile it again
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Attention().eval().bfloat16(), torch.randn(1, 50, 16).bfloat16()
    options = {"inner": "eager", "strict": True, **options}
    if "plan" not in options:
        options["form"] = "sigmoid"
    compiled = torch.compile(model, backend="attnpass", options=options)
    with torch.no_grad():
        return compiled(x)


def test_the_backend_uses_a_measured_tile_and_else_the_default(tmp_path, tile_that_runs):
    path = tmp_path / "a.db"
    default, want = tile_that_runs(db=str(path))
    assert default == default_tile("cpu", 8).as_list()
    with Store(path) as store:
        store.put_tile(CLASS, {**HERE, "device": "another"}, TILE, {})
    assert tile_that_runs(db=str(path))[0] == default
    with Store(path) as store:
        store.put_tile(CLASS, HERE, TILE, {})
    tile, got = tile_that_runs(db=str(path))
    assert tile == TILE.as_list()
    torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-4)


def test_a_database_that_cannot_be_read_is_a_warning(tmp_path, caplog, tile_that_runs):
    path = tmp_path / "a.db"
    path.write_text("not a database, and long enough to be taken for one" * 20)
    assert tile_that_runs(db=str(path))[0] == default_tile("cpu", 8).as_list()
    assert "measured tiles are not used" in caplog.text


def test_a_plan_carries_tiles_and_rows_measured_here_win(tmp_path, tile_that_runs):
    torch.manual_seed(0)
    x = torch.randn(1, 50, 16).bfloat16()
    plan = Plan.create(Attention().eval().bfloat16(), x, form="sigmoid")
    name = plan.hash
    plan.add_tiles(HERE, {CLASS: TILE})
    plan.add_tiles({**HERE, "device": "another"}, {CLASS: Tile(block_m=512)})
    assert plan.hash == name
    loaded = Plan.load(plan.save(tmp_path / "plan.json"))
    assert loaded.tiles_for(HERE) == {CLASS: TILE}
    assert loaded.tiles_for({**HERE, "threads": 99}) == {}
    path = str(tmp_path / "a.db")
    assert tile_that_runs(plan=loaded, db=path)[0] == TILE.as_list()
    better = Tile(block_m=64, block_n=32)
    with Store(path) as store:
        store.put_tile(CLASS, HERE, better, {})
    assert tile_that_runs(plan=loaded, db=path)[0] == better.as_list()


@pytest.mark.parametrize(
    "broken", [{"tiles": {}}, [], {"context": HERE, "tiles": {"c": {"x": 1}}}]
)
def test_broken_tiles_of_a_plan_are_a_warning(broken, caplog):
    plan = Plan({})
    plan.tiles = {"a": broken}
    assert plan.tiles_for(HERE) == {}
    assert "the plan's tiles are not used" in caplog.text


# --- the command ------------------------------------------------------------------------------


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


def test_every_h_can_be_tuned():
    for h in reference.H_FUNCTIONS:
        call = Call(replace(SMALL, h=h))
        assert call.error(TILE, call.expected()) <= tiles.ALLOWED["float32"]
