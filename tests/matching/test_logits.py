"""The terms between product and softmax: scale, masks, biases, sinks."""

import torch

import attnpass
from attnpass import forms


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
    assert report.sites == []
    assert [d.code for d in report.declined] == ["AXIS_UNPROVEN"]
