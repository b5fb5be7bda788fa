"""Plans that no real plan can beat: what attention itself costs, measured.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from attnpass.plan import Entry, Plan
from attnpass.site import AttentionSite


class Touch(nn.Module):
    """Reads q, k and v once and writes the output once: the least that any attention does."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """``[B, H, T, dv]``, O(T d); its values mean nothing."""
        group = q.shape[1] // v.shape[1]
        weight = q.mean(-1, keepdim=True) * k.mean((1, 2, 3), keepdim=True)  # [B, H, T, 1]
        if q.shape[2] != v.shape[2]:
            v = v.mean(2, keepdim=True)
        v = v if group == 1 else v.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2)
        return (v + weight * 1e-3).to(v.dtype)


class Ablated(Plan):
    """Every site that has a cheaper legal form at all, replaced by ``Touch``."""

    @classmethod
    def of(cls, sites: Iterable[AttentionSite]) -> Ablated:
        """The ablation of these sites."""
        return cls({s.name: Entry("hydra", {}, s.fits()) for s in sites})

    def module(self, site: AttentionSite, **options: Any) -> nn.Module | None:
        """``Touch`` where any form but softmax is legal."""
        free = any(no is None for form, no in site.legal.items() if form != "softmax")
        return Touch() if free else None
