"""SkipAt's Phi on a grid of patches and over a sequence: `python benchmarks/skipat_phi.py [OUT]`.

Compiled by inductor, static shapes: the whole, its two linear layers alone, and over a sequence
the whole with ``conv1d`` in place of shifted sums. What lies between the first two is all that a
kernel for convolution, GELU and ECA could save. Ratios are medians of interleaved pairs over the
whole, after every output was compared with eager in float64.
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
"""Batch, size, width."""
ROOM = 1e-4
"""Largest relative difference from eager in float64."""


class ByConv1d(SkipAt):
    """Over a sequence, all rows seen: the convolution as torch has it."""

    def _mixed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = F.gelu(self.up(x)).transpose(1, 2)
        x = F.conv1d(x, self.conv.weight, self.conv.bias, padding="same", groups=self.hidden)
        return x.transpose(1, 2)


def measure(batch: int, size: Any, width: int, r: float) -> dict[str, Any]:
    """One row."""
    torch._dynamo.reset()
    grid = size if isinstance(size, tuple) else None
    n = size if grid is None else grid[0] * grid[1]
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
        assert off < ROOM, f"{name} is off by {off}"
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
