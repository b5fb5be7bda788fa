"""Exact softmax by our kernel wherever it is the quicker one: what every graph gets.

So run all attentions that no form of a plan changes, and all of them where nothing was asked for;
a plan of nothing but softmax is called lossless.
Soundness (nothing is lost): results are those of the model within rounding. Conditions:

1. The form is softmax of the same logits and values; a site that is read in part (soft caps,
   talking heads, weights that are used elsewhere, sinks) runs as the model spells it.
2. Attention dropout leaves a site as it is: other random numbers would be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.graph import Flex, value
from attnpass.matching import Region


def lossless(regions: Sequence[Region], inputs: Sequence[Any]) -> dict[str, nn.Module]:
    """By site name: softmax by the kernel, for the sites where it is quicker than torch's own.

    ``inputs`` are the graph's: whether gradients are recorded decides, too.
    """
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    found = ((region.site.name, _quicker(region, trained)) for region in regions)
    return {name: module for name, module in found if module is not None}


def _quicker(region: Region, trained: bool) -> nn.Module | None:
    """The kernel's form, where it serves a site and is quicker there, by its lengths."""
    site = region.site
    if site.legal.get("softmax") is not None or site.dropout > 0:
        return None
    if isinstance(region.anchor.target, Flex):
        return None  # it skips whole blocks of its mask, and what that saves is not measured
    form = forms.build("softmax", site)
    if not isinstance(form, forms.Softmax):
        return None
    queries, keys, _ = region.operands
    lengths = (value(x.node).shape[x.permutation[-2]] for x in (queries, keys))
    q, masked = value(queries.node), bool(site.mask)
    form.tile = form.choose(q, *lengths, masked=masked, trained=trained)
    return form if form.tile.implementation == "fused" else None
