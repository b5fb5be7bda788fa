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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.graph import Flex, value
from attnpass.kernels.activations import SOFTMAX
from attnpass.kernels.tile import ShapeClass, Tile, Tiles
from attnpass.matching import Region
from attnpass.torch_internals import hint


def lossless(
    regions: Sequence[Region], inputs: Sequence[Any], tiles: Tiles
) -> dict[str, nn.Module]:
    """By site name: softmax by the kernel, for the sites where it is quicker than torch's own.

    ``inputs`` are the graph's: whether gradients are recorded decides, too. ``tiles``: measured
    launch parameters, which also tell where the kernel is the slower one.
    """
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    found = ((region.site.name, _quicker(region, trained, tiles)) for region in regions)
    return {name: module for name, module in found if module is not None}


def _quicker(region: Region, trained: bool, tiles: Tiles) -> nn.Module | None:
    """The kernel's form, where it serves a site and is quicker there, measured or by its sizes."""
    site = region.site
    if site.legal.get("softmax") is not None or site.dropout > 0:
        return None
    if isinstance(region.anchor.target, Flex):
        return None  # it skips whole blocks of its mask, and what that saves is not measured
    form = forms.build("softmax", site, tiles=tiles)
    if not isinstance(form, forms.Softmax):
        return None
    queries, keys, _ = region.operands
    lengths = (value(x.node).shape[x.permutation[-2]] for x in (queries, keys))
    q, masked = value(queries.node), bool(site.mask)
    known = _measured(region, trained, tiles)
    form.tile = form.choose(q, *lengths, masked=masked, trained=trained, known=known)
    return form if form.tile.implementation == "fused" else None


def _measured(region: Region, trained: bool, tiles: Tiles) -> Tile | None:
    """The tile that was measured for the attention of a region; with its backward if trained."""
    if not tiles:
        return None
    site = region.site
    (t, d), (s, _), (_, dv) = (
        [value(x.node).shape[i] for i in x.permutation[-2:]] for x in region.operands
    )
    q = value(region.operands[0].node)
    lead = (hint(q.numel()) or 0) // max(1, (hint(t) or 1) * d)
    sizes = ((1, lead, t, d), (1, 1, s, d), (1, 1, s, dv))
    q, k, v = (torch.empty(*size, dtype=q.dtype, device="meta") for size in sizes)
    direction = "backward" if trained else "forward"
    kind = ShapeClass.of(q, k, v, None, None, SOFTMAX, "causal" in site.mask, direction)
    if kind is None:
        return None
    masks = ["none"]
    if site.bias or site.mask - {"causal", "padding"}:
        masks = ["rows", "columns"]  # a mask that nothing is known of may be the same in all rows
    elif "padding" in site.mask:
        masks = ["columns"]
    found = (tiles.get(str(replace(kind, mask=mask))) for mask in masks)
    return next((tile for tile in found if tile is not None), None)
