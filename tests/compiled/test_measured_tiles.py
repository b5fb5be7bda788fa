"""Measured tiles: never a wrong result, never slower than the default, never a wrong hit."""

from __future__ import annotations

import sqlite3

import pytest
import torch
from torch import nn

from attnpass import environment
from attnpass.kernels.cpu import pointwise_launch
from attnpass.kernels.select import default_tile, has_kernel
from attnpass.kernels.tile import Tile
from attnpass.plan.plan import Plan
from attnpass.report import compiled_report, reset_report
from attnpass.store import Store, measured_tiles

HERE = environment.kernel_context()
TILE = Tile(block_m=16, block_n=64, heads=2)


# --- on a GPU, which is not here --------------------------------------------------------------


# --- what is stored ---------------------------------------------------------------------------


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


class Masked(Attention):
    """The same, where the last keys of each item may be padding."""

    def __init__(self, masked):
        super().__init__()
        self.masked = masked

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        keep = (torch.arange(50) < 40)[None, None, None] if self.masked else None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return out.transpose(1, 2).flatten(2)


# bfloat16 takes the operator on every machine
CLASS = "sigmoid forward 2x64x64x8 bfloat16 full"


@pytest.fixture
def tile_that_runs(monkeypatch, through_python):
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


@pytest.mark.skipif(not has_kernel("pointwise"), reason="no C++ kernel here")
@pytest.mark.parametrize("masked", [False, True])
def test_which_exact_softmax_runs_is_what_was_measured(tmp_path, masked):
    """Too few scores for the kernel by default; then it is measured to be quicker."""
    mask = "+columns" if masked else ""
    kind = f"softmax forward 2x64x64x8 float32 full{mask}"
    torch.manual_seed(0)
    model, x = Masked(masked).eval(), torch.randn(1, 50, 16)
    with torch.no_grad():
        want = model.double()(x.double())
    model.float()

    def rewritten() -> list[str]:
        torch._dynamo.reset()
        reset_report()
        options = {"inner": "eager", "db": str(tmp_path / "a.db")}
        with torch.no_grad():
            got = torch.compile(model, backend="attnpass", options=options)(x)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
        return list(compiled_report().rewritten)

    assert rewritten() == []
    for tile, found in ((TILE, ["root"]), (Tile("aten"), [])):
        with Store(tmp_path / "a.db") as store:
            store.put_tile(kind, HERE, tile, {})
        assert rewritten() == found


@pytest.mark.parametrize(
    "broken", [{"tiles": {}}, [], {"context": HERE, "tiles": {"c": {"x": 1}}}]
)
def test_broken_tiles_of_a_plan_are_a_warning(broken, caplog):
    plan = Plan({})
    plan.tiles = {"a": broken}
    assert plan.tiles_for(HERE) == {}
    assert "the plan's tiles are not used" in caplog.text


# --- the command ------------------------------------------------------------------------------
