"""Where rows and columns of a map are, also behind what combines heads."""

import pytest
import torch

import attnpass
from attnpass import forms


class Talking(torch.nn.Module):
    """Heads combined by a matrix before and after softmax; ``axis`` is where it acts."""

    def __init__(self, how):
        super().__init__()
        self.qkv, self.how = torch.nn.Linear(8, 24), how
        self.mix = torch.nn.Linear(2, 2, bias=False)
        self.conv = torch.nn.Conv2d(2, 2, 1)

    def combined(self, s):
        if self.how == "linear":
            return self.mix(s.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.how == "einsum":
            return torch.einsum("bhij,hg->bgij", s, self.mix.weight)
        if self.how == "keys":  # mixes tokens: something else
            return self.mix(s.permute(0, 1, 3, 2)[..., :2, :2].permute(0, 1, 3, 2))
        return self.conv(s)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        p = self.combined((q @ k.transpose(-2, -1)) / 2).softmax(-1)
        if self.how == "keys":
            return p @ v[:, :, :2]
        return self.combined(p) @ v


@pytest.mark.parametrize("how", ["linear", "einsum", "conv"])
def test_talking_heads_exchange_the_softmax_node_alone(how):
    torch.manual_seed(0)
    model, x = Talking(how).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    (site,) = attnpass.find_sites(model, x).sites
    assert site.mixed and site.swapped
    assert {f for f, no in site.legal.items() if no is None} == {"softmax", "sigmoid", "relu"}
    assert site.legal["hydra"].code == "TALKING_HEADS"
    capture = attnpass.Capture(model).trace(x)
    with torch.no_grad():
        want = model(x)
        capture.use_modules({site.name: forms.build("softmax", site)})
        torch.testing.assert_close(capture(x), want, rtol=0, atol=1e-12)
        capture.use_modules({site.name: forms.build("sigmoid", site, trainable=False)})
        q, k, v = model.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        s = model.combined((q @ k.transpose(-2, -1)) / 2)
        p = torch.sigmoid(s - torch.tensor(5.0).log().double())
        torch.testing.assert_close(capture(x), model.combined(p) @ v, rtol=0, atol=1e-12)


def test_a_matrix_on_the_keys_is_no_talking_heads():
    report = attnpass.find_sites(Talking("keys").eval(), torch.randn(2, 5, 8))
    assert report.sites == [] and len(report.declined) == 1
