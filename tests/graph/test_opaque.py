"""Regions that cannot be re-traced (vmap, cond, flex) are kept; attention beside them is not."""

import pytest
import torch
from nested import (
    BOUND,
    Attention,
    error,
)
from torch import nn

import attnpass
from attnpass import Plan


def branch(layer, x):
    return torch.cond(x.sum() > -1e9, layer, lambda y: y + 1, (x,))


def mapped(layer, x):
    return torch.vmap(lambda y: layer(y[None])[0])(x)


def flexible(layer, x):
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
    return x + layer.o(flex_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("how", "code"),
    [(branch, "HOP_UNSUPPORTED"), (mapped, "HOP_UNSUPPORTED"), (flexible, "FLEX")],
    ids=["cond", "vmap", "flex"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_regions_that_are_kept_as_they_are(how, code):
    """One attention inside a kept region, one beside it: the other is rewritten."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.free = Attention(), Attention()

        def forward(self, x):
            return self.free(how(self.kept, x))

    torch.manual_seed(0)
    model = Both().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        plan = Plan.create(model, x, form="relu")
        assert [*plan.sites] == ["free"]
        capture = attnpass.Capture(model).trace(x)
        capture.use(plan)
        formed = capture(x)
        assert error([formed], [want]) > 1e-3
        for inner in ("eager", "aot_eager"):
            torch._dynamo.reset()
            attnpass.reset_report()
            run = torch.compile(model, backend="attnpass", options={"inner": inner, "plan": plan})
            assert error([run(x)], [formed]) < BOUND
            (declined,) = attnpass.compiled_report().declined
            assert declined.code == code and declined.hint
            assert "nested.py" in declined.source or "flex" in declined.source
