"""Activations of the original model, recorded site by site for calibration.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from attnpass import forms
from attnpass.batch import Batch, call
from attnpass.capture import Capture, CapturedGraph, Layer, Seen, watched
from attnpass.matching import Region
from attnpass.recover.padding import key_padding
from attnpass.recover.samples import BlockSample, MapSample, Sample
from attnpass.site import AttentionSite

ITEMS = 32
"""Items per site whose queries, keys and values are kept for fitting."""

BLOCK_ITEMS = 128
"""Items per site whose block outputs are kept, for skipat."""

MAP_LOGITS = 2**23
"""Logits that are kept of a site where softmax alone is exchanged; those of one item at least."""


@dataclass
class Observed:
    """Activations of the original model, per site.

    Attributes:
        samples: inputs and outputs of the attention. blocks: of its block, for skipat.
        masks: the mask of every call, also of calls of which no sample was kept.
        items: number of items seen, including those not stored.
        shared: masks and biases, stored once for all sites that are given the same.
    """

    samples: dict[str, list[Sample | MapSample]] = field(default_factory=dict)
    blocks: dict[str, list[BlockSample]] = field(default_factory=dict)
    masks: dict[str, list[Tensor | None]] = field(default_factory=dict)
    items: Counter[str] = field(default_factory=Counter)
    shared: list[Tensor] = field(default_factory=list)

    def share(self, x: Tensor | None) -> Tensor | None:
        """A copy of a mask or bias; the stored one where another site was given the same."""
        if x is None:
            return None
        for y in self.shared:
            if (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device) and torch.equal(y, x):
                return y
        self.shared.append(x.detach().clone())
        return self.shared[-1]


class _Recorder(nn.Module):
    """Softmax attention that keeps its inputs and outputs."""

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
        into.masks.setdefault(name, []).append(into.share(keep))
        b, room = q.shape[0], ITEMS - into.items[name]
        into.items[name] += b
        if room > 0:
            q, k, v, y = (x.detach()[:room].clone() for x in (q, k, v, out))
            bias, keep = (
                into.share(x if x is None or x.shape[0] != b else x[:room]) for x in (bias, keep)
            )
            causal, same_tokens = "causal" in self.site.mask, self.site.kind == "self"
            sample = Sample(q, k, v, bias, keep, y, causal, same_tokens)
            into.samples.setdefault(name, []).append(sample)
        return out


class _MapRecorder(forms.SoftmaxWeights):
    """A lone softmax that keeps as many of its logits as there is room for, and every mask."""

    def __init__(self, site: AttentionSite, into: Observed) -> None:
        super().__init__()
        self.site, self.into = site, into

    def forward(self, s: Tensor, keep: Tensor | None = None) -> Tensor:
        into, name = self.into, self.site.name
        into.masks.setdefault(name, []).append(into.share(key_padding(keep)))
        into.items[name] += len(s)
        samples = into.samples.setdefault(name, [])
        room = MAP_LOGITS - sum(x.logits.numel() for x in samples if isinstance(x, MapSample))
        if room > 0:
            causal, same_tokens = "causal" in self.site.mask, self.site.kind == "self"
            samples.append(MapSample.of(s, keep, causal, same_tokens, room))
        return super().forward(s, keep)


def observe(capture: Capture, batches: Sequence[Batch], *, blocks: bool = True) -> Observed:
    """Activations of up to ``ITEMS`` items per site, of ``BLOCK_ITEMS`` with ``blocks``.

    Runs the original model; afterwards ``capture`` is under no plan.
    """
    observed = Observed()

    def recorder(site: AttentionSite, weights: Mapping[str, Tensor]) -> nn.Module | None:
        if site.legal.get("softmax") is not None or site.sink:
            return None
        return (_MapRecorder if site.swapped else _Recorder)(site, observed)

    with torch.no_grad():
        for batch in batches:
            capture.choose(recorder)
            call(capture, batch)
            capture.use(None)
            if blocks:
                _, layers = watched(capture, batch, _block_nodes)
                for _, layer, values in layers:
                    _keep_blocks(observed, layer, values)
            taken = min(observed.items.values(), default=math.inf)
            if taken >= (BLOCK_ITEMS if blocks else ITEMS):
                break
    return observed


def _block_pairs(layer: Layer) -> list[tuple[Region, fx.Node, fx.Node]]:
    """The regions that skipat could convert, with the previous block's output and their own."""
    return [
        (r, r.previous.block_out, r.block_out)
        for r in layer.regions
        if r.previous is not None and r.previous.block_out is not None and r.block_out is not None
    ]


def _block_nodes(graph: CapturedGraph, layer: Layer) -> set[str]:
    return {node.name for _, *pair in _block_pairs(layer) for node in pair}


def _keep_blocks(observed: Observed, layer: Layer, values: Seen) -> None:
    """Keep block outputs, each with the mask of the same call of its attention."""
    for region, previous, output in _block_pairs(layer):
        kept = observed.blocks.setdefault(region.site.name, [])
        masks = observed.masks.get(region.site.name, [])
        keep = masks[len(kept)] if len(kept) < len(masks) else None
        if sum(len(x) for x, _, _ in kept) < BLOCK_ITEMS:
            x, y = (values[node.name].detach().clone() for node in (previous, output))
            kept.append(BlockSample(x, y, keep))
