"""Converted models with convolutions: which kernel torch would choose is no condition."""

import pytest
import torch
from models import DISTINCT, Block
from plans import BOUND, error
from torch import nn

import attnpass
from attnpass import Plan
from attnpass.errors import CaptureError

D = DISTINCT.D

LAYERS = {
    "patches": (nn.Conv2d(1, D, 4, 4), (1, 8, 8)),
    "three by three": (nn.Conv2d(2, D, 3), (2, 5, 6)),
    "dilated": (nn.Conv2d(2, D, 3, dilation=2, padding=2), (2, 5, 6)),
    "depthwise": (nn.Conv2d(D, D, 3, padding=1, groups=D), (D, 5, 6)),
    "transposed": (nn.ConvTranspose2d(2, D, 3), (2, 3, 4)),
    "of a sequence": (nn.Conv1d(2, D, 3), (2, 12)),
    "of a volume": (nn.Conv3d(1, D, 3), (1, 4, 5, 5)),
}


class Convolved(nn.Module):
    """Attention over the places of a convolution's result ``[B, D, ...]``."""

    def __init__(self, layer, branch=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.attn, self.branch = layer, Block(), branch

    def forward(self, x):
        y = self.layer(x).flatten(2).transpose(1, 2)
        if self.branch and x.shape[0] >= 16:
            y = y + 1.0
        return self.attn(y)


def images(size, batch):
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))


def converted(model, x):
    """Converted without a change, so that the model itself says what is right."""
    with torch.no_grad():
        return attnpass.convert(model, Plan({}), x)


@pytest.mark.parametrize(("name", "batch"), list(zip(LAYERS, 4 * [3, 20], strict=False)))
def test_a_batch_on_the_other_side_of_a_kernels_threshold_runs(name, batch):
    layer, size = LAYERS[name]
    model = Convolved(layer).eval()
    module = converted(model, images(size, batch))
    with torch.no_grad():
        for other in (2, 3, 15, 16, 20, 70):
            x = images(size, other)
            got, want = module(x), model(x)
            assert error(got, want) <= BOUND and got.stride() == want.stride()


def test_a_branch_of_the_model_at_the_same_threshold_is_a_condition():
    layer, size = LAYERS["three by three"]
    for batch, other in ((3, 20), (20, 3)):
        module = converted(Convolved(layer, branch=True).eval(), images(size, batch))
        with torch.no_grad(), pytest.raises(CaptureError, match="as the graph was captured for"):
            module(images(size, other))


def test_images_smaller_than_the_kernel_are_refused():
    layer, size = LAYERS["three by three"]
    module = converted(Convolved(layer).eval(), images(size, 3))
    with torch.no_grad(), pytest.raises(CaptureError, match="as the graph was captured for"):
        module(torch.randn(3, 2, 2, 6))


def test_with_channels_last_a_batch_is_right_or_refused():
    layer, size = LAYERS["depthwise"]
    x = images(size, 20).to(memory_format=torch.channels_last)
    model = Convolved(layer).eval().to(memory_format=torch.channels_last)
    module = converted(model, x)
    ran = 0
    for other in (3, 16, 70):
        x = images(size, other).to(memory_format=torch.channels_last)
        with torch.no_grad():
            want = model(x)
            try:
                got = module(x)
            except CaptureError:
                continue
        ran += 1
        assert error(got, want) <= BOUND and got.stride() == want.stride()
    assert ran
