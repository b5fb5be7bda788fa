"""SkipAt's Phi on a grid of patches and over a sequence: `python benchmarks/skipat_phi.py [OUT]`.

Inductor compiles, with static shapes, the whole Phi, its two linear layers alone, and over a
sequence Phi with ``conv1d`` in place of shifted sums. A kernel for convolution, GELU and ECA could
save at most the difference of the first two. Ratios are medians of interleaved pairs over the
whole Phi; before, every output is compared with eager in float64.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from cpu_attention import Runs, say, timed, write
from torch import Tensor, nn

from attnpass.forms import SkipAt

GRIDS = ((8, (14, 14), 384), (2, (28, 28), 384))
SEQUENCES = ((16, 256, 384), (16, 512, 384), (8, 512, 768))
"""Batch, rows and columns of patches or tokens of a sequence, width."""
TOLERANCE = 1e-4
"""Largest relative difference from eager in float64."""


class ByConv1d(SkipAt):
    """SkipAt over a sequence without a mask, by torch's own convolution."""

    def _mixed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = F.gelu(self.up(x)).transpose(1, 2)
        x = F.conv1d(x, self.conv.weight, self.conv.bias, padding="same", groups=self.hidden)
        return x.transpose(1, 2)


def measure(batch: int, size: int | tuple[int, int], width: int, r: float) -> dict[str, Any]:
    """The timed parts of one Phi, checked: a row of the result."""
    torch._dynamo.reset()
    grid, n = (size, size[0] * size[1]) if isinstance(size, tuple) else (None, size)
    x, whole = torch.randn(batch, n, width), SkipAt(width, r=r, grid=grid)
    parts: dict[str, nn.Module] = {
        "phi": whole,
        "linear layers alone": nn.Sequential(whole.up, whole.down),
    }
    if grid is None:
        parts["by conv1d"] = ByConv1d(width, r=r)
        parts["by conv1d"].load_state_dict(whole.state_dict())
    runs: Runs = {}
    for name, part in parts.items():
        run = torch.compile(part, dynamic=False)
        want = copy.deepcopy(part).double()(x.double())
        off = float((run(x).double() - want).norm() / want.norm())
        assert off < TOLERANCE, f"{name} is off by {off}"
        runs[name] = functools.partial(run, x)
    row = {"form": "skipat", "batch": batch, "n": n, "grid": grid, "width": width, "r": r}
    row |= timed(runs, 6.0)
    say(row, *list(runs)[1:])
    return row


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [measure(*at, r) for at in (*GRIDS, *SEQUENCES) for r in (0.5, 1.0)]
    write("skipat_phi", rows)


if __name__ == "__main__":
    main()
