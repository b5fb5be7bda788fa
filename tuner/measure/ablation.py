"""Plans that no real plan can beat: they measure the cost of attention itself.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv value dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from attnpass.plan import Entry, Plan
from attnpass.site import AttentionSite


class ReadWriteOnly(nn.Module):
    """Reads q, k and v once and writes the output once: the least memory traffic of attention."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """``[B, H, T, dv]`` in O(T d); the values mean nothing."""
        group = q.shape[1] // v.shape[1]
        weight = q.mean(-1, keepdim=True) * k.mean((1, 2, 3), keepdim=True)  # [B, H, T, 1]
        if q.shape[2] != v.shape[2]:
            v = v.mean(2, keepdim=True)  # [B, G, 1, dv]
        v = v if group == 1 else v.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2)
        return (v + weight * 1e-3).to(v.dtype)


class AblationPlan(Plan):
    """A plan with ``ReadWriteOnly`` at every site where any cheaper form is legal."""

    @classmethod
    def of(cls, sites: Iterable[AttentionSite]) -> AblationPlan:
        """The ablation of these sites."""
        return cls(
            {s.name: Entry("hydra" if _free(s) else "softmax", {}, s.fits()) for s in sites}
        )

    def module(self, site: AttentionSite, **options: Any) -> nn.Module | None:
        """``ReadWriteOnly`` where any form but softmax is legal, else None."""
        return ReadWriteOnly() if _free(site) else None


def _free(site: AttentionSite) -> bool:
    """Whether any form but softmax is legal at a site."""
    return any(no is None for form, no in site.legal.items() if form != "softmax")
