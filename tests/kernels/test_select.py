"""Which implementation and which tile runs."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import LOW, Seen
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnpass import forms
from attnpass.kernels import select
from attnpass.kernels.gpu import limits as gpu
from attnpass.kernels.select import (
    ATEN_SCORES,
    ATEN_SMALL,
    choose,
    choose_hydra,
    choose_softmax,
    default_tile,
    space,
)
from attnpass.kernels.tile import ShapeClass, Tile

FUSED, ATEN = Tile(block_m=32, block_n=64), Tile("aten")
BOTH = ("forward", "backward")


@pytest.mark.parametrize(
    ("tile", "dtype", "expected"),
    [
        (None, torch.float32, "aten"),
        (None, torch.float64, "aten"),
        (None, torch.bfloat16, "fused"),
        (None, torch.float16, "fused"),
        (FUSED, torch.float32, "fused"),
        (FUSED, torch.bfloat16, "fused"),
        (ATEN, torch.float32, "aten"),
        # plain operations would round the logits to the input dtype
        (ATEN, torch.bfloat16, "fused"),
        (ATEN, torch.float16, "fused"),
    ],
)
def test_which_implementation_runs(tile, dtype, expected):
    q = torch.randn(1, 2, 5, 4, dtype=dtype)
    assert choose(q, q, tile).implementation == expected
    if tile is not None and tile.implementation == expected:
        assert choose(q, q, tile) is tile
    module = forms.Pointwise(2, 2, 4, h="relu", tile=tile)
    with torch.no_grad(), Seen() as seen:
        module(q, q, q)
    assert seen.names == (["attnpass::pointwise"] if expected == "fused" else [])


@pytest.mark.parametrize(
    ("tile", "causal", "t", "expected"),
    [
        (None, False, 500, "aten"),
        (None, True, 127, "aten"),
        (None, True, 128, "the kernel's"),
        (ATEN, True, 128, "aten"),
        (FUSED, False, 5, "fused"),
    ],
    ids=str,
)
def test_which_hydra_runs(tile, causal, t, expected, path):
    if expected == "the kernel's":
        expected = "fused" if path != "tiled" else "aten"
    q = torch.randn(1, 2, t, 4)
    with torch.no_grad(), Seen() as seen:
        forms.Hydra(2, 4, tile=tile, causal=causal)(q, q, q)
    assert seen.names == (["attnpass::hydra"] if expected == "fused" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_scores_go_to_the_fused_operator(path, dtype):
    # there is no C++ kernel for float64
    fast = path != "tiled" and dtype == torch.float32
    limit = ATEN_SMALL if fast else ATEN_SCORES
    n = math.isqrt(limit)
    q, k = (torch.empty(1, 1, m, 1, dtype=dtype) for m in (n, limit // n))
    assert choose(q, k, None).implementation == "aten"
    more = torch.empty(1, 1, limit // n + 1, 1, dtype=dtype)
    assert choose(q, more, None) == default_tile("cpu", 1)


def test_float64_hydra_is_plain(path):
    assert choose_hydra(torch.empty(1, 1, 200, 4, dtype=torch.float64), True, None) == Tile("aten")


def test_the_choice_does_not_break_a_graph():
    module = forms.Pointwise(2, 2, 4, h="relu")
    q = torch.randn(1, 2, 40, 4)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(q, q, q), module(q, q, q))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_on_a_gpu_a_graph_holds_the_operators_with_its_tiles(dtype, monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda: 90)
    h, d = 2, 64
    with FakeTensorMode():
        q = torch.empty(1, h, 200, d, device="cuda", dtype=dtype)
        for module, name in (
            (forms.Pointwise(h, h, d, h="sigmoid", trainable=False), "pointwise"),
            (forms.Hydra(h, d, trainable=False), "hydra"),
            (forms.Hydra(h, d, causal=True, trainable=False), "hydra"),
        ):
            graph = make_fx(module)(q, q, q).graph
            (call,) = (n for n in graph.nodes if str(n.target).startswith("attnpass."))
            assert str(call.target) == f"attnpass.{name}.default"
            if name == "pointwise":
                tiles = [default_tile("cuda", d, x, dtype).as_list() for x in BOTH]
                assert [list(x) for x in call.args[11:13]] == tiles
                assert tiles[0] == gpu.default(d, d, 2, "forward", 90).as_list()


def test_on_a_gpu_few_tokens_of_hydra_are_left_to_the_compiler():
    with FakeTensorMode():
        q = torch.empty(1, 2, 16, 64, device="cuda")
        assert choose_hydra(q, True, None) == Tile("aten")
        assert choose_hydra(q.double(), True, None) == Tile("aten")
        long = torch.empty(1, 2, 3000, 64, device="cuda", dtype=torch.float64)
        assert choose(long, long) == Tile("aten")


def test_a_measured_tile_is_used_by_calls_of_its_class_alone():
    # bfloat16 takes the operator on every machine
    q = torch.randn(1, 2, 40, 4).bfloat16()
    forward, backward = (ShapeClass.of(q, q, q, None, None, "relu", False, d) for d in BOTH)
    tiles = {str(forward): Tile(block_m=16, block_n=32), str(backward): Tile(block_m=64)}
    module = forms.Pointwise(2, 2, 4, h="relu", tiles=tiles)

    def used(q, k):
        with Seen() as seen:
            module(q, k, k)
        return seen.tiles[0]

    assert used(q, q) == [tiles[str(d)].as_list() for d in (forward, backward)]
    # 33 and 64 queries are of one class; 65, other keys, or another dtype are not
    assert used(q[:, :, :33], q) == used(q, q)
    defaults = [default_tile("cpu", 4, d).as_list() for d in BOTH]
    assert used(torch.randn(1, 2, 65, 4).bfloat16(), q) == defaults
    assert used(q, torch.randn(1, 2, 80, 4).bfloat16()) == defaults
    assert used(q.half(), q.half()) == defaults


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_space_holds_the_default(device, direction):
    default = default_tile(device, 64, direction).as_dict()
    for name, choices in space(device).items():
        assert default[name] in choices
        assert len(set(choices)) == len(choices) > 1


@pytest.mark.parametrize(
    ("shape", "keys", "dtype", "trained", "want"),
    [
        ((1, 4, 128, 32), 128, torch.float32, False, "fused"),
        ((1, 4, 120, 32), 128, torch.float32, False, "aten"),  # too few scores
        ((1, 4, 120, 32), 128, torch.bfloat16, False, "fused"),
        ((1, 4, 128, 32), 128, torch.float32, True, "aten"),  # too few for its backward
        ((16, 4, 128, 32), 128, torch.float32, True, "fused"),
        ((1, 4, 128, 32), 128, torch.float64, False, "aten"),
        ((512, 4, 8, 32), 200, torch.float32, True, "aten"),  # too few queries
        ((1, 4, 1, 32), 1024, torch.float32, False, "fused"),  # decoding
        ((1, 4, 1, 32), 1000, torch.float32, False, "aten"),
        ((512, 4, 1, 32), 48, torch.float32, False, "aten"),  # too few keys
    ],
)
def test_choose_softmax(monkeypatch, shape, keys, dtype, trained, want):
    monkeypatch.setattr(select, "wins_softmax", lambda wide: True)
    q = torch.empty(shape, dtype=dtype)
    assert choose_softmax(q, shape[2], keys, 0.1, trained=trained).implementation == want
    assert choose_softmax(q, shape[2], keys, -0.1).implementation == "aten"
    monkeypatch.setattr(select, "wins_softmax", lambda wide: False)
    assert choose_softmax(q, shape[2], keys, 0.1, trained=trained).implementation == "aten"


def test_exact_softmax_stays_with_torch_where_the_kernel_did_not_win(monkeypatch):
    monkeypatch.setattr(select.launch, "refusal", lambda name: None)
    narrow, wide = (torch.empty(1, 12, 512, d) for d in (64, 65))
    wins = {"neon": (False, False), "avx2": (True, False), "avx512": (True, True)}
    for instructions, want in wins.items():
        monkeypatch.setattr(select.build, "instruction_set", lambda found=instructions: found)
        tiles = [choose_softmax(q, 512, 512, 0.1) for q in (narrow, wide)]
        assert tuple(x.implementation == "fused" for x in tiles) == want
        tiles = [choose_softmax(q.bfloat16(), 512, 512, 0.1) for q in (narrow, wide)]
        assert {x.implementation == "fused" for x in tiles} == {want[0]}
    monkeypatch.setattr(select.launch, "refusal", lambda name: "no compiler")
    assert choose_softmax(narrow, 512, 512, 0.1).implementation == "aten"


def test_causal_calls_have_fewer_rows_in_a_block(monkeypatch):
    monkeypatch.setattr(select, "wins_softmax", lambda wide: True)
    rows = [default_tile("cpu", 64, causal=n).block_m for n in (0, 1, 512, 513)]
    assert rows == [128, 32, 32, 64]
    assert default_tile("cpu", 64, "backward", causal=100) == default_tile("cpu", 64, "backward")
    q = torch.empty(8, 12, 600, 64)
    assert choose(q, q, causal=True) == default_tile("cpu", 64, causal=600)
    assert choose_softmax(q, 600, 600, 0.1, causal=True) == default_tile("cpu", 64, causal=600)
