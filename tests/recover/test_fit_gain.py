"""The gain is the least-squares solution, and the error that it leaves is the least."""

from __future__ import annotations

import pytest
import torch
from recovery_problems import closed

from attnpass.recover.calibration import fit
from attnpass.recover.fit_gain import error_left


def test_hydras_gain_is_least_squares_over_rows_that_are_no_padding():
    module, sample = closed("hydra")
    with torch.no_grad():
        start = module(sample.q, sample.k, sample.v, None, sample.keep)
        fit(module, [sample])
    y, out = (x[:, :, :6].transpose(1, 2).flatten(0, 1) for x in (start, sample.out))  # rows, H, d
    expected = torch.stack(
        [
            torch.linalg.lstsq(y[:, h, c, None], out[:, h, c, None]).solution.view(())
            for h in range(2)
            for c in range(4)
        ]
    )
    ratio = module.gain.detach().double().view(-1)  # it starts at 1
    torch.testing.assert_close(ratio, expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("h", ["sigmoid", "relu"])
def test_no_other_gain_comes_nearer(h):
    module, sample = closed(h)
    with torch.no_grad():
        least = fit(module, [sample])
        assert least == pytest.approx(error_left(module, [sample]))
        kept = module.gain.clone()
        for head in range(2):
            for factor in (0.9, 1.1):
                module.gain.copy_(kept).view(2, -1)[head] *= factor
                assert error_left(module, [sample]) > least
