"""The lossless plan of a graph: exact softmax by our kernel wherever that is the quicker one.

It is what ``torch.compile(model, backend="attnpass")`` applies where nothing else was asked for.
Soundness (nothing is lost): results are those of the model within rounding. Conditions:

1. The form is softmax of the same logits and values; a site that is read in part (soft caps,
   talking heads, weights that are used elsewhere, sinks) runs as the model spells it.
2. Attention dropout leaves a site as it is: other random numbers would be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from attnpass import forms
from attnpass.graph import value
from attnpass.matching import Region
from attnpass.plan import Entry, Plan


def lossless_plan(regions: Sequence[Region]) -> Plan | None:
    """Softmax at every site, by the kernel where it is quicker; None where it is so nowhere."""
    quicker = {region.site.name for region in regions if _quicker(region)}
    if not quicker:
        return None
    entries = {
        r.site.name: Entry("softmax", {"fused": r.site.name in quicker}, r.site.fits())
        for r in regions
    }
    return Plan(entries).constant()


def _quicker(region: Region) -> bool:
    """Whether the kernel serves a site and is quicker there, by its lengths."""
    site = region.site
    if site.legal.get("softmax") is not None or site.dropout > 0:
        return False
    form = forms.build("softmax", site)
    if not isinstance(form, forms.Softmax):
        return False
    lengths = (value(x.node).shape[x.permutation[-2]] for x in (region.q, region.k))
    tile = form.tile(value(region.q.node), *lengths, masked=bool(site.mask))
    return tile.implementation == "fused"
