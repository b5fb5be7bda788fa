"""Sizes of the test models: all different, so that no axis is found by its size, or all equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

MIN = torch.finfo(torch.float32).min

INF = -math.inf


@dataclass(frozen=True)
class Sizes:
    """B, H, T, S (cross attention only) and d."""

    B: int = 2
    H: int = 4
    T: int = 5
    S: int = 7
    d: int = 6

    @property
    def D(self) -> int:
        return self.H * self.d


DISTINCT = Sizes()

EQUAL = Sizes(4, 4, 4, 4, 4)
