"""``attnpass.convert``: a plain module that computes the same as the capture under the plan."""

import pytest
import torch
from models import Block
from plans import BOUND, build, data, error, shaken
from torch import nn

import attnpass
from attnpass import Plan
from attnpass.errors import CaptureError


def converted(model, plan, *args, **kwargs):
    with torch.no_grad():
        capture = attnpass.Capture(model).trace(*args, **kwargs)
        capture.use(plan)
        return attnpass.convert(model, plan, *args, **kwargs), capture


@pytest.mark.parametrize("form", ["sigmoid", "relu", "hydra", "skipat"])
def test_convert_equals_capture_at_any_batch(form):
    model = build()
    plan = shaken(Plan.create(model, data(), form=form))
    module, capture = converted(model, plan, data())
    with torch.no_grad():
        for batch in (1, 2, 3, 7):
            assert error(module(data(batch)), capture(data(batch))) <= BOUND


def test_convert_in_evaluation_is_differentiable():
    model, x = build(), data()
    plan = Plan.create(model, x, form="relu")
    module = attnpass.convert(model, plan, x)
    module(x).sum().backward()
    assert model.blocks[0].attn.q.weight.grad.any()


def test_convert_other_length_is_right_or_refused():
    model = build()
    plan = Plan.create(model, data(), form="relu")
    module, capture = converted(model, plan, data())
    with torch.no_grad():
        try:
            got = module(data(2, 8))
        except (CaptureError, RuntimeError):
            return
        assert error(got, capture(data(2, 8))) <= BOUND


def test_convert_a_returned_batch_size_is_right_or_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x), x.shape[0]

    model = Model().eval()
    plan = Plan.create(model, data(2), form="relu")
    try:
        module = attnpass.convert(model, plan, data(2))
        with torch.no_grad():
            _, batch = module(data(5))
    except CaptureError:
        return
    assert batch == 5


@pytest.mark.parametrize("headless", [True, False])
def test_convert_refuses_graph_breaks(headless):
    """Also where all layers share one graph, of which the last call makes the result."""
    model, x = build(), data()
    if headless:
        model.head = nn.Identity()
    plan = Plan.create(model, x, form="relu")
    torch._dynamo.reset()
    for block in model.blocks:
        block.broken = True
    with pytest.raises(CaptureError, match="one graph, got"):
        attnpass.convert(model, plan, x)
