"""The module that ``convert`` returns: its parameters, its arguments, its results."""

from collections import namedtuple

import pytest
import torch
from models import Attention, mul_after, pad_masked_fill
from plans import BOUND, build, data, error, shaken
from torch import nn

import attnpass
from attnpass import Plan
from attnpass.errors import CaptureError


def test_convert_shares_parameters_and_is_differentiable():
    model, x = build().train(), data()
    plan = shaken(Plan.create(model, x, form="relu"))
    module = attnpass.convert(model, plan, x)
    capture = attnpass.Capture(model).trace(x)
    capture.use(plan)
    own = {id(p) for p in module.parameters()}
    weights = [p for p in [*model.parameters(), *plan.parameters()] if id(p) in own]
    assert {id(p) for p in plan.parameters()} <= own
    want = torch.autograd.grad(capture(x).square().sum(), weights, allow_unused=True)
    got = torch.autograd.grad(module(x).square().sum(), weights, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        before = module(x)
        model.head.weight.add_(1)
        assert error(module(x), before) > 1e-3


def test_convert_keywords_and_structures():
    Out = namedtuple("Out", "logits mask")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = build(core=pad_masked_fill)

        def forward(self, batch, *, mask, double=False):
            y = self.stack(batch["x"], mask)
            return {"y": (y * 2 if double else y), "out": Out(y + 1, mask), "n": 3, "none": None}

    model, x = Model().eval(), data(3)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2:] = False
    plan = Plan.create(model, {"x": x}, mask=mask, double=True, form="relu")
    with torch.no_grad():
        capture = attnpass.Capture(model).trace({"x": x}, mask=mask, double=True)
        capture.use(plan)
        module = attnpass.convert(model, plan, {"x": x}, mask=mask, double=True)
    with torch.no_grad():
        for batch in (3, 5):
            x, mask = data(batch), torch.ones(batch, 5, dtype=torch.bool)
            mask[0, 3:] = False
            want = capture({"x": x}, mask=mask, double=True)
            got = module({"x": x}, mask=mask, double=True)
            assert error(got["y"], want["y"]) <= BOUND
            assert isinstance(got["out"], Out) and got["out"].mask is mask
            assert error(got["out"].logits, want["out"].logits) <= BOUND
            assert got["n"] == 3 and got["none"] is None
    with pytest.raises(CaptureError, match="structure"), torch.no_grad():
        module({"x": x}, mask=mask)
    with pytest.raises(CaptureError), torch.no_grad():
        module({"x": x}, mask=mask, double=False)


def test_convert_does_not_confuse_arguments_that_were_one_tensor():
    """Converted on ``(x, x)``, called with two tensors: the right answer or a refusal."""

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(mul_after)

        def forward(self, x, y):
            return self.attn(x, None, y)

    model, x, y = Cross().eval(), data(2), data(2).flip(0)
    plan = Plan.create(model, x, x, form="relu")
    module = attnpass.convert(model, plan, x, x)
    capture = attnpass.Capture(model)
    with torch.no_grad():
        capture.trace(x, y)
        capture.use(plan)
        try:
            got = module(x, y)
        except CaptureError:
            return
        assert error(got, capture(x, y)) <= BOUND


def test_convert_is_a_plain_module(tmp_path):
    model, x = build(), data()
    plan = Plan.create(model, x, form="sigmoid")
    module = attnpass.convert(model, plan, x)
    with torch.no_grad():
        want = module(x)
        state = {k: v.clone() for k, v in module.state_dict().items()}
        for parameter in module.parameters():
            parameter.zero_()
        assert not torch.equal(module(x), want)
        module.load_state_dict(state)
        assert torch.equal(module(x), want)
        exported = torch.export.export(module, (x,)).module()
        assert error(exported(x), want) <= BOUND
