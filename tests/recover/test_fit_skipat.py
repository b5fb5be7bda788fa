"""SkipAt starts as the nearest linear map, in any dtype, and padding has no part in it."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import shifted

import attnpass
from attnpass import forms
from attnpass.recover.calibration import fit
from attnpass.tuner.digits import DigitsViT


@pytest.mark.parametrize(("grid", "prefix"), [(None, 0), ((4, 4), 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_skipat_starts_as_the_nearest_linear_map(grid, prefix, causal):
    torch.manual_seed(0)
    module = forms.SkipAt(12, r=0.5, kernel=3, grid=grid, prefix=prefix, causal=causal)
    z, other = torch.randn(2, 64, 16 + prefix, 12)
    y = shifted(z)
    y[:, :prefix] = 1e3  # these rows pass, nothing can fit them
    with torch.no_grad():
        error = fit(module, [], [(z, y, None)])
        got = module(other)[:, prefix:]
    assert 0 < error < 0.15
    left = (got - shifted(other[:, prefix:])).square().sum()
    assert left < 0.16 * shifted(other).square().sum()


# a whole model of each dtype, converted and compiled; one of them is enough for every check
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.slow),
        pytest.param(torch.float64, marks=pytest.mark.slow),
    ],
)
def test_skipat_takes_the_dtype_of_the_model(dtype):
    torch.manual_seed(0)
    net, images = DigitsViT(dim=16, depth=3, heads=2).eval(), torch.rand(8, 1, 32, 32)
    options = {"r": 0.5, "kernel": 3}
    plan = attnpass.Plan.create(net, images, form="skipat", form_options=options)
    wide = attnpass.calibrate(net, plan, [(images,)])
    with torch.no_grad():
        want = attnpass.convert(net, plan, images)(images).double()
        net, images = net.to(dtype), images.to(dtype)
        own = attnpass.Plan.create(net, images, form="skipat", form_options=options)
        errors = attnpass.calibrate(net, own, [(images,)])
        # what it is fitted to is rounded to the dtype
        assert errors == pytest.approx(wide, abs=max(2 * torch.finfo(dtype).eps, 1e-4))
        own.values = plan.values
        for run in (
            attnpass.convert(net, own, images),
            torch.compile(net, backend="attnpass", options={"plan": own, "inner": "eager"}),
        ):
            got = run(images)
            assert got.dtype == dtype
            error = (got.double() - want).norm() / want.norm()
            assert error < 8 * max(torch.finfo(x).eps for x in (dtype, torch.float32))


def test_padding_teaches_skipat_nothing():
    torch.manual_seed(0)
    z = torch.randn(8, 20, 12)
    keep = (torch.arange(20) < torch.arange(4, 20, 2)[:, None])[:, None, None]
    found = []
    for filler in (0.0, 100.0):
        y = torch.where(keep[:, 0, 0, :, None], shifted(z), filler)
        x = torch.where(keep[:, 0, 0, :, None], z, filler)
        module = forms.SkipAt(12, r=1.0, kernel=3)
        with torch.no_grad():
            error = fit(module, [], [(x[:5], y[:5], keep[:5]), (x[5:], y[5:], keep[5:])])
        found.append([torch.tensor(error), *module.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
