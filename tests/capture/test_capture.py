"""One captured model under many plans; sites are named by their place in the model."""

import pytest
import torch
from models import (
    DISTINCT,
    POSITIVES,
    Attention,
    Stack,
    mul_after,
)
from roundtrip import BOUND, error
from torch import nn

import attnpass


def test_a_module_called_twice_and_shared_modules_are_ordinals():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(mul_after)
            self.same = self.attn

        def forward(self, x):
            return self.same(self.attn(x))

    (x,) = POSITIVES[0].inputs()
    sites = attnpass.find_sites(Twice().eval(), x).sites
    assert len(sites) == 2
    assert len({s.name for s in sites}) == 2
    assert sites[0].weights == sites[1].weights


def test_stack_names_follow_the_modules():
    (x,) = POSITIVES[0].inputs()
    report = attnpass.find_sites(Stack(3).eval(), x)
    assert [s.name for s in report.sites] == [f"blocks.{i}.attn" for i in range(3)]
    named = dict(Stack(3).named_modules())
    assert all(s.name in named for s in report.sites)
    assert [s.legal["skipat"] is None for s in report.sites] == [False, True, True]


def test_zero_graphs_are_said():
    """nn.Transformer with a mask and no word on causality breaks in every frame upstream."""
    model = nn.Transformer(16, 2, 1, 1, 16, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(2, 5, 16)
    report = attnpass.find_sites(model, x, x, tgt_mask=mask, tgt_is_causal=True)
    assert len(report.sites) == 3
    report = attnpass.find_sites(model, x, x, tgt_mask=mask)
    assert report.graphs == 0 and report.sites == []
    assert {d.code for d in report.declined} == {"NOT_CAPTURED"}
    with pytest.raises(attnpass.CaptureError, match="got no graph"):
        attnpass.Capture(model).trace(x, x, tgt_mask=mask)


def test_same_site_with_another_mask_in_a_second_graph():
    """One module, captured with and without a causal mask: each graph keeps its own."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(
                lambda q, k, v, m, mod: torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=mod.causal
                )
            )

        def forward(self, x, causal):
            self.attn.causal = causal
            return self.attn(x)

    model, x = Model().eval(), torch.randn(2, 5, DISTINCT.D)
    capture = attnpass.Capture(model)
    with torch.no_grad():
        capture.trace(x, False)
        capture.trace(x, True)
        plan = capture.plan(
            {s.name: attnpass.plan.Entry("sigmoid", {}, s.fits()) for s in capture.sites}
        )
        capture.use(plan)
        changed = x.clone()
        changed[:, -1] += 1
        one, two = capture(x, True), capture(changed, True)
    assert torch.equal(one[:, :-1], two[:, :-1]), "a causal graph sees the future"


def test_training_capture_does_not_drop_in_evaluation():
    from models import dropped

    model, x = Attention(dropped).train(), torch.randn(2, 5, DISTINCT.D)
    capture = attnpass.Capture(model).trace(x)
    plan = capture.plan(
        {s.name: attnpass.plan.Entry("softmax", {}, s.fits()) for s in capture.sites}
    )
    plan.round_trip = True
    assert len(capture.use(plan)) == 1
    model.eval()
    with torch.no_grad():
        assert error(capture(x), model(x)) <= BOUND
