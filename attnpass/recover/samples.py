"""What calibration fits to: the activations of the original model, site by site.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, D width.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnpass import forms
from attnpass.forms import Pointwise

ITEMS = 32
"""Items per site whose queries, keys and values are kept for fitting."""

BLOCKS = 128
"""Items per site whose block outputs are kept, for skipat."""

ROOM = 8
"""Items of a sample whose logits are looked at."""

ROWS = 256
"""Query rows whose logits are held at a time."""

ROOM_ROWS = 128
"""Rows of an item whose shift is looked for."""

ROOM_MAP = 2**23
"""Logits that are kept of a site where softmax alone is exchanged; those of one item at least."""

MASKED = -5e3
"""Logits below are a mask that was added."""


@dataclass
class Sample:
    """What one attention saw, and its output ``[B, H, T, dv]``.

    ``causal`` and ``own`` (queries and keys are of the same tokens) are of the graph that ran.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    keep: Tensor | None
    out: Tensor
    causal: bool | None = None
    own: bool = True

    @property
    def padding(self) -> Tensor | None:
        """The mask ``[B, 1, 1, S]``, where it is one of padding: the same for all rows."""
        return _padding(self.keep)

    @property
    def rows(self) -> Tensor | None:
        """Which rows ``[B, 1, T, 1]`` are no padding, where a self-attention masks it."""
        keep = self.padding
        if keep is None or not self.own or keep.shape[3] != self.q.shape[2]:
            return None
        return keep.transpose(-1, -2)

    def run(self, module: nn.Module) -> Tensor:
        """What a form makes of it, like ``out``."""
        module = _under(module, self.causal)
        out: Tensor = module(self.q, self.k, self.v, self.bias, self.keep)
        return out

    def logits(self, module: Pointwise) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Some rows of a few items, block by block.

        Queries ``[b, H, m, d]``, logits ``[b, H, m, S]`` with -inf where masked, L and, where
        padding is masked, whether a row counts, both broadcast to ``[b, H, m, 1]``.
        """
        at, step = 0, max(self.q.shape[2] // ROOM_ROWS, 1)
        for x, length in _logits(_under(module, self.causal), self):
            first = -at % step
            rows = slice(at + first, at + x.shape[2], step)
            at += x.shape[2]
            if length.shape[2] > 1:
                length = length[:, :, first::step]
            counts = None if self.rows is None else self.rows[:ROOM, :, rows]
            yield self.q[:ROOM, :, rows], x[:, :, first::step], length.unsqueeze(-1), counts


@dataclass
class MapSample:
    """Some rows ``[B, H, m, S]`` of the logits that a softmax saw where it alone is exchanged.

    ``keep [B, 1|H, m, S]`` says also what is causal; ``rows [B, 1, m, 1]`` are no padding.
    """

    map: Tensor
    keep: Tensor
    rows: Tensor | None

    @classmethod
    def of(cls, s: Tensor, keep: Tensor | None, causal: bool, own: bool, room: int) -> MapSample:
        """Of logits ``[B, H, T, S]`` and the mask that broadcasts to them, about ``room`` many."""
        t, keys = s.shape[2:]
        at = torch.arange(0, t, max(math.ceil(t / ROOM_ROWS), 1), device=s.device)
        items = max(room // max(s.shape[1] * len(at) * keys, 1), 1)
        mask, rows = _four(keep, items), None
        if mask is None:
            mask = torch.ones((1, 1, 1, keys), dtype=torch.bool, device=s.device)
        elif own and mask.shape[1:] == (1, 1, t):
            rows = mask.transpose(-1, -2)[:, :, at]
        mask = (mask[:, :, at] if mask.shape[2] > 1 else mask).expand(-1, -1, len(at), keys)
        if causal:
            mask = mask & (torch.arange(keys, device=s.device) <= at.unsqueeze(1))
        return cls(s[:items, :, at].detach(), mask.clone(), rows)

    @property
    def out(self) -> Tensor:
        """Softmax's weights."""
        out: Tensor = forms.SoftmaxWeights()(self.map)
        return out

    def run(self, module: nn.Module) -> Tensor:
        """What a form makes of it, like ``out``; the mask is whole here."""
        out: Tensor = _under(module, False)(self.map, self.keep)
        return out

    def logits(self, module: Pointwise) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """As of a ``Sample``; the queries, which are not known, have no features."""
        x = self.map.float()
        x = x.masked_fill(~self.keep | (x < MASKED), -math.inf)
        length = _under(module, False)._length(x, x.transpose(2, 3), self.keep)
        yield x.new_empty((*x.shape[:3], 0)), x, length, self.rows


def _padding(keep: Tensor | None) -> Tensor | None:
    """A mask ``[B|1, 1, 1, S]``, where it is one of padding."""
    padding = keep is not None and keep.dim() == 4 and keep.shape[1:3] == (1, 1)
    return keep if padding else None


def _under(module: Any, causal: bool | None) -> Any:
    """A form as a graph with a causal mask, or without one, has it; parameters are shared."""
    if causal is None or module.causal == causal:
        return module
    module = copy.copy(module)
    module.causal = causal
    return module


Block = tuple[Tensor, Tensor, Tensor | None]
"""Previous block output and own block output ``[B, T, D]``, and the mask."""


@dataclass
class Observed:
    """Activations of the original model, per site."""

    samples: dict[str, list[Sample | MapSample]] = field(default_factory=dict)
    masks: dict[str, list[Tensor | None]] = field(default_factory=dict)
    """Of every call, also where no more samples are kept."""
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    items: Counter[str] = field(default_factory=Counter)
    """Seen, also where no more are kept."""
    known: list[Tensor] = field(default_factory=list)
    """Masks and biases, kept once for all sites that are given the same."""

    def once(self, x: Tensor | None) -> Tensor | None:
        """A copy, the one that another site was given where that was the same."""
        if x is None:
            return None
        for y in self.known:
            if (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device) and torch.equal(y, x):
                return y
        self.known.append(x.detach().clone())
        return self.known[-1]


def _logits(module: Pointwise, s: Sample) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``[b, H, m, S]`` of a few items, -inf where masked, and L broadcast to rows.

    In blocks of m rows, so that never more than some ``ROWS * S`` are held.
    """
    q, k = s.q[:ROOM].float(), s.k[:ROOM].float()
    if module.k0 is not None:
        k = k - module.k0.unsqueeze(1)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    bias, keep = (_four(x) for x in (s.bias, s.keep))
    length = module._length(q, k, keep).squeeze(-1)
    for i in range(0, q.shape[2], ROWS):
        rows = slice(i, i + ROWS)
        x = q[:, :, rows] @ k.transpose(-1, -2) * module.scale
        if bias is not None:
            x = x + (bias if bias.shape[2] == 1 else bias[:, :, rows]).float()
            x = x.masked_fill(x < MASKED, -math.inf)
        if keep is not None:
            x = x.masked_fill(~(keep if keep.shape[2] == 1 else keep[:, :, rows]), -math.inf)
        if module.causal:
            t = torch.arange(i, i + x.shape[2], device=x.device).unsqueeze(1)
            x = x.masked_fill(torch.arange(x.shape[3], device=x.device) > t, -math.inf)
        yield x, length if length.shape[2] == 1 else length[:, :, rows]


def _four(x: Tensor | None, items: int = ROOM) -> Tensor | None:
    """A bias or mask with all four axes, of the first few items."""
    if x is None:
        return None
    return x.view((1,) * (4 - x.dim()) + x.shape)[:items]
