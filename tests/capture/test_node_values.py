"""Values inside captured graphs while the model runs."""

import torch
from compiling import build, data, error
from models import dropped

import attnpass
from attnpass import Plan
from attnpass.capture import watched


def blocks(graph, layer):
    """The block outputs of the layer's sites."""
    return [r.block_out.name for r in layer.regions]


def test_wanted_values_are_seen_once_for_every_layer_that_ran():
    model, x = build(2), data()
    capture = attnpass.Capture(model).trace(x)
    with torch.no_grad():
        out, ran = watched(capture, (x,), blocks)
        assert error(out, model(x)) == 0
    ((graph, layer, seen),) = ran
    assert graph is capture.graphs[0] and set(seen) == set(blocks(graph, layer))
    first = next(iter(seen.values()))
    with torch.no_grad():
        block = model.blocks[0]
        assert error(first, block.attn(block.norm(x))) <= 1e-6


def test_what_ran_before_runs_again_afterwards():
    model, x = build(2), data()
    capture = attnpass.Capture(model).trace(x)
    capture.use(Plan.create(model, x, form="relu"))
    before = [layer.active for _, layer in capture.layers]
    with torch.no_grad():
        want = capture(x)
        out, _ = watched(capture, (x,), lambda graph, layer: [])
        assert error(out, want) == 0
    assert [layer.active for _, layer in capture.layers] == before


def test_a_batch_of_new_sizes_runs_again_with_the_same_dropout():
    """The first run makes a graph that nothing watched; the second draws the same numbers."""
    model = build(1, core=dropped).train()
    capture = attnpass.Capture(model).trace(data(2, 5))
    known = len(capture.layers)
    with torch.no_grad():
        torch.manual_seed(5)
        out, ran = watched(capture, (data(3, 7),), blocks)
        torch.manual_seed(5)
        want, _ = watched(capture, (data(3, 7),), blocks)
    assert len(capture.layers) > known and len(ran) == 1
    assert error(out, want) == 0
