"""The terms between product and softmax, folded: scale, fill, masks, biases, sinks."""

import math

import pytest
import torch
from tracing import code_of, projected, projections, proven, shapes, site_of, unread

import attnpass
from attnpass import forms

Q, K, V = shapes()
PAD = torch.ones(2, 1, 1, 7, dtype=torch.bool)
PAD[1, ..., 4:] = False
BIAS = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
HEADS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1)


def on_logits(step):
    def run(q, k, v, *more):
        return step(q @ k.mT, *more).softmax(-1) @ v

    return run


def masked(s, m, fill=-1e9):
    return s.masked_fill(~m, fill)


def test_scales_multiply_also_the_fill():
    site = site_of(on_logits(lambda s, m: masked(s * 0.5, m) * 0.25), Q, K, V, PAD)
    assert site.scale == 0.125 and site.fill == -2.5e8


def test_a_bias_is_scaled_with_the_logits_behind_it():
    site = site_of(on_logits(lambda s, b: (s + b) * 0.5), Q, K, V, BIAS)
    assert site.bias and site.scale == 0.5


def test_the_larger_of_two_fills_holds():
    """An empty row is the mean over the positions of the larger fill."""

    def two(s, m):
        return masked(masked(s, m, -1e9), m & (torch.arange(7) > 1), -1e8)

    assert site_of(on_logits(two), Q, K, V, PAD).fill == -1e8


def test_a_mask_that_is_added_is_said_to_be():
    site = site_of(on_logits(lambda s, m: s + torch.where(m, 0.0, -1e9).double()), Q, K, V, PAD)
    assert site.added and site.fill == -1e9
    site = site_of(
        on_logits(lambda s, m: s + torch.where(m, 0.0, -math.inf).double()), Q, K, V, PAD
    )
    assert not site.added and site.fill == -math.inf


CODES = {
    "mask-scaled-away": (lambda s, m: masked(s, m, -2e4) * 1e-4, (PAD,), "UNKNOWN_SCORE_OP:mul"),
    "factor-after-a-mask": (
        lambda s, m, h: masked(s, m) * h,
        (PAD, HEADS),
        "UNKNOWN_SCORE_OP:mul",
    ),
    "factor-after-a-bias": (lambda s, b, h: (s + b) * h, (BIAS, HEADS), "UNKNOWN_SCORE_OP:mul"),
    "factor-of-keys": (lambda s, b: s * b, (BIAS,), "UNKNOWN_SCORE_OP:mul"),
    "mask-on-turned-logits": (lambda s, m: masked(s.mT, m.mT).mT, (PAD,), "AXIS_UNPROVEN"),
}


@pytest.mark.parametrize("name", CODES)
def test_terms_that_cannot_be_folded_are_declined(name):
    """A turned map is exchanged at softmax alone, and so is the rest, for the reason given."""
    step, masks, code = CODES[name]
    if code == "AXIS_UNPROVEN":
        (region,) = proven(on_logits(step), Q, K, V, *masks).regions
        assert region.site.swapped
    else:
        assert code_of(on_logits(step), Q, K, V, *masks) == code


def sunk(change):
    def run(q, k, v, sink):
        joined = torch.cat([q @ k.mT, sink.expand(2, 3, 5, 1)], -1)
        return change(joined).softmax(-1)[..., :7] @ v

    return run


def test_logits_may_not_change_once_a_sink_is_joined():
    assert site_of(sunk(lambda s: s - s.amax(-1, keepdim=True)), Q, K, V, HEADS).sink
    assert code_of(sunk(lambda s: s * 2), Q, K, V, HEADS) == "SINK"


def test_a_view_that_keeps_heads_apart_is_followed():
    def core(q, k, v, m):
        flat = ((q @ k.mT) * 0.5).view(6, 5, 7)
        return masked(flat.view(2, 3, 5, 7), m).softmax(-1) @ v

    x, y, weights = projections()
    site = site_of(projected(core), x, y, PAD, *weights, weights=3)
    assert (site.heads, site.scale, site.mask) == (3, 0.5, {"padding"})


def test_a_mask_written_in_place_is_declined():
    def core(q, k, v, m):
        s = q @ k.mT
        keep = m.view(2, 1, 1, 7)
        keep.logical_or_(keep)
        return masked(s, keep).softmax(-1) @ v

    assert code_of(core, Q, K, V, PAD[:, 0, 0]) == "MUTATED_ALIAS"


class Sunk(torch.nn.Module):
    """A learned column beside the logits, dropped before the values or not."""

    def __init__(self, dropped):
        super().__init__()
        self.qkv, self.sink = torch.nn.Linear(8, 24), torch.nn.Parameter(torch.zeros(2, 1, 1))
        self.dropped = dropped

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        s = q @ k.transpose(-2, -1)
        sink = self.sink.expand(s.shape[0], -1, s.shape[2], 1)
        p = torch.cat([s, sink], -1).softmax(-1)
        if self.dropped:
            return p[..., :-1] @ v
        return p @ torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)


def test_a_sink_is_recorded_and_left_out_of_the_other_forms():
    model, x = Sunk(True).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    (site,) = attnpass.find_sites(model, x).sites
    assert site.sink and not site.swapped
    assert site.legal["softmax"] is None and site.legal["sigmoid"] is None
    assert site.legal["hydra"].code == "SINK"
    capture = attnpass.Capture(model).trace(x)
    with torch.no_grad():
        want = model(x)
        capture.use_modules({site.name: forms.build("softmax", site)})
        torch.testing.assert_close(capture(x), want, rtol=0, atol=1e-12)
        capture.use_modules({site.name: forms.build("sigmoid", site, trainable=False)})
        q, k, v = model.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        p = torch.sigmoid(q @ k.transpose(-2, -1) - torch.tensor(5.0).log().double())
        torch.testing.assert_close(capture(x), p @ v, rtol=0, atol=1e-12)


def test_a_sink_that_meets_values_declines():
    report = attnpass.find_sites(Sunk(False).eval(), torch.randn(2, 5, 8))
    assert report.declined == []
    assert [d.code for d in unread(report.sites)] == ["AXIS_UNPROVEN"]
