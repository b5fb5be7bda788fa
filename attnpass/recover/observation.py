"""What calibration fits to: the activations of the original model, site by site.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from attnpass import forms
from attnpass.batch import Batch, call
from attnpass.capture import Capture, Graph, Layer, Seen, watched
from attnpass.matching import Region
from attnpass.recover.samples import BLOCKS, ITEMS, ROOM_MAP, MapSample, Observed, Sample, _padding
from attnpass.site import AttentionSite


class _Recorder(nn.Module):
    """Softmax that keeps what passes."""

    def __init__(self, site: AttentionSite, into: Observed) -> None:
        super().__init__()
        self.site, self.into, self.softmax = site, into, forms.build("softmax", site)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = self.softmax(q, k, v, bias, keep)
        into, name = self.into, self.site.name
        into.masks.setdefault(name, []).append(into.once(keep))
        b, room = q.shape[0], ITEMS - into.items[name]
        into.items[name] += b
        if room > 0:
            q, k, v, y = (x.detach()[:room].clone() for x in (q, k, v, out))
            bias, keep = (
                into.once(x if x is None or x.shape[0] != b else x[:room]) for x in (bias, keep)
            )
            how = ("causal" in self.site.mask, self.site.kind == "self")
            into.samples.setdefault(name, []).append(Sample(q, k, v, bias, keep, y, *how))
        return out


class _MapRecorder(forms.SoftmaxWeights):
    """Softmax in its own place that keeps of the logits what there is room for; masks always."""

    def __init__(self, site: AttentionSite, into: Observed) -> None:
        super().__init__()
        self.site, self.into = site, into

    def forward(self, s: Tensor, keep: Tensor | None = None) -> Tensor:
        into, name = self.into, self.site.name
        into.masks.setdefault(name, []).append(into.once(_padding(keep)))
        into.items[name] += len(s)
        found = into.samples.setdefault(name, [])
        room = ROOM_MAP - sum(x.map.numel() for x in found if isinstance(x, MapSample))
        if room > 0:
            how = ("causal" in self.site.mask, self.site.kind == "self")
            found.append(MapSample.of(s, keep, *how, room))
        return super().forward(s, keep)


def observe(capture: Capture, batches: Sequence[Batch], *, blocks: bool = True) -> Observed:
    """Run the original model and keep up to ``ITEMS`` items per site, ``BLOCKS`` for skipat."""
    out = Observed()

    def recorder(site: AttentionSite, weights: Mapping[str, Tensor]) -> nn.Module | None:
        if site.legal.get("softmax") is not None or site.sink:
            return None
        return (_MapRecorder if site.swapped else _Recorder)(site, out)

    with torch.no_grad():
        for batch in batches:
            capture.choose(recorder)
            call(capture, batch)
            capture.use(None)
            if blocks:
                _, ran = watched(capture, batch, _blocks)
                for _, layer, seen in ran:
                    _keep_blocks(out, layer, seen)
            taken = min(out.items.values(), default=math.inf)
            if taken >= (BLOCKS if blocks else ITEMS):
                break
    return out


def _pairs(layer: Layer) -> list[tuple[Region, fx.Node, fx.Node]]:
    """Regions with the previous block output and their own."""
    return [
        (r, r.previous.block_out, r.block_out)
        for r in layer.regions
        if r.previous is not None and r.previous.block_out is not None and r.block_out is not None
    ]


def _blocks(graph: Graph, layer: Layer) -> set[str]:
    return {node.name for _, *pair in _pairs(layer) for node in pair}


def _keep_blocks(out: Observed, layer: Layer, seen: Seen) -> None:
    for region, z, y in _pairs(layer):
        found = out.blocks.setdefault(region.site.name, [])
        masks = out.masks.get(region.site.name, [])
        keep = masks[len(found)] if len(found) < len(masks) else None
        if sum(len(x) for x, _, _ in found) < BLOCKS:
            found.append((seen[z.name].detach().clone(), seen[y.name].detach().clone(), keep))
