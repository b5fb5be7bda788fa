"""Samples: logits in blocks of few rows, few rows of a map, whatever the mask."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnpass import forms
from attnpass.kernels.tile import Tile
from attnpass.recover import samples
from attnpass.recover.calibration import fit
from attnpass.recover.samples import MapSample, Sample


def test_calibration_holds_few_logits_at_a_time():
    b, h, n, d = 4, 2, 2048, 4
    q, k, v = torch.randn(3, b, h, n, d)
    module = forms.Pointwise(h, h, d, h="sigmoid", tile=Tile(block_m=128, block_n=256))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with torch.no_grad(), Watch():
        fit(module, [Sample(q, k, v, None, None, v)])
    assert largest <= b * h * 2 * samples.SHIFT_ROWS * n < b * h * n * n


@torch.no_grad()
def test_of_a_map_few_rows_are_held(monkeypatch):
    monkeypatch.setattr(samples, "SHIFT_ROWS", 7)
    room = 2 * 4 * 7 * 40
    torch.manual_seed(0)
    s, keep = torch.randn(6, 4, 40, 40), torch.rand(6, 1, 1, 40) > 0.3
    for causal in (False, True):
        held = MapSample.of(s, keep, causal, True, room)
        assert held.logits.shape == (2, 4, 7, 40) and held.keep.shape == (2, 1, 7, 40)
        assert torch.equal(held.logits, s[:2, :, ::6]) and held.logits.data_ptr() != s.data_ptr()
        below = torch.ones(40, 40, dtype=torch.bool)
        whole = keep[:2] & (below.tril() if causal else below)
        assert torch.equal(held.keep, whole[:, :, ::6])
        assert torch.equal(held.rows[:, 0, :, 0], keep[:2, 0, 0, ::6])
    # between two sequences of one length a mask of keys says nothing of the queries
    assert MapSample.of(s, keep, False, False, 1).rows is None
