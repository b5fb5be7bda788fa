"""How hydra is cut into chunks of tokens."""

from __future__ import annotations

import pytest
import torch
from triton_checks import DEVICE, check_hydra

from attnpass.kernels.call import HydraCall
from attnpass.kernels.gpu import (
    hydra_triton_launch,
)
from attnpass.kernels.tile import Tile


# slow: the only calls whose sums cross many chunks
@pytest.mark.slow
@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_hydra_across_chunks(causal, warps):
    # 64 features in blocks of 16 to 64 tokens, several blocks a chunk
    tile = Tile(warps=warps).as_list()
    check_hydra(b=2, h=4, t=1100, s=1100, d=16, causal=causal, masked=2, tile=tile)


def test_sums_before_and_after_a_chunk():
    sums = torch.randn(2, 3, 8, device=DEVICE)
    q = torch.empty(2, 2, 5, 4, device=DEVICE)

    def starts(causal, **more):
        call = HydraCall(q, q, q, None, None, causal, 1e-6, Tile())
        return hydra_triton_launch._Tokens(call).starts(sums, **more)

    total, strides = starts(False)
    assert strides[1] == 0  # every chunk reads the same sum
    torch.testing.assert_close(total[:, 0], sums.sum(1))
    before, _ = starts(True)
    torch.testing.assert_close(before[:, 2], sums[:, 0] + sums[:, 1])
    assert bool((before[:, 0] == 0).all())
    after, _ = starts(True, reverse=True)
    torch.testing.assert_close(after[:, 0], sums[:, 1] + sums[:, 2])
    assert bool((after[:, 2] == 0).all())
