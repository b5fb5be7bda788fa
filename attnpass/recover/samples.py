"""Samples of the original model's attention, which calibration fits the forms to.

A sample runs a form on the inputs that softmax had, and gives the logits from which shifts are
solved. Shapes: B batch, H query heads, G key/value heads, T queries, S keys, d head dim, dv
value dim, D width; b items of B and m rows of T are looked at.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from attnpass import forms
from attnpass.forms import Hydra, Pointwise
from attnpass.recover.padding import key_padding

LOGIT_ITEMS = 8
"""Items of a sample whose logits are computed."""

SHIFT_ROWS = 128
"""Query rows of an item whose shift is solved for."""

MASKED_LOGIT = -5e3
"""Logits below it come from a mask that was added."""

Form = TypeVar("Form", bound=Pointwise | Hydra)


class BlockSample(NamedTuple):
    """Output ``[B, T, D]`` of the previous attention block and of a block, and the mask."""

    previous: Tensor
    output: Tensor
    keep: Tensor | None


class LogitRows(NamedTuple):
    """Some query rows of a sample.

    Attributes:
        queries: ``[b, H, m, d]``; of no features where they are not known.
        logits: ``[b, H, m, S]``, -inf where masked.
        length: L, broadcasts to ``[b, H, m, 1]``.
        counts: whether a row is no padding, likewise; None: all are none.
    """

    queries: Tensor
    logits: Tensor
    length: Tensor
    counts: Tensor | None


@dataclass
class Sample:
    """Inputs of one attention, and its output ``[B, H, T, dv]`` by softmax.

    Attributes:
        causal: whether the graph that ran has a causal mask; None: as the form says.
        same_tokens: whether queries and keys are of the same tokens (self-attention).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    keep: Tensor | None
    out: Tensor
    causal: bool | None = None
    same_tokens: bool = True

    @property
    def padding(self) -> Tensor | None:
        """The mask ``[B, 1, 1, S]``, where it is one of padding: the same for all rows."""
        return key_padding(self.keep)

    @property
    def rows(self) -> Tensor | None:
        """Which rows ``[B, 1, T, 1]`` are no padding, where a self-attention masks it."""
        keep = self.padding
        if keep is None or not self.same_tokens or keep.shape[3] != self.q.shape[2]:
            return None
        return keep.transpose(-1, -2)

    def run(self, form: Pointwise | Hydra) -> Tensor:
        """A form's output on the same inputs, of the shape of ``out``."""
        out: Tensor = with_causal(form, self.causal)(self.q, self.k, self.v, self.bias, self.keep)
        return out

    def logit_rows(self, form: Pointwise) -> LogitRows:
        """At most twice ``SHIFT_ROWS`` rows of a few items, evenly spaced."""
        form = with_causal(form, self.causal)
        q, k = self.q[:LOGIT_ITEMS].float(), self.k[:LOGIT_ITEMS].float()
        if form.k0 is not None:
            k = k - form.k0.unsqueeze(1)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        bias, keep = (_with_four_axes(x) for x in (self.bias, self.keep))
        length, tokens = form.row_lengths(q, k, keep), q.shape[2]
        rows = slice(None, None, max(tokens // SHIFT_ROWS, 1))
        x = q[:, :, rows] @ k.transpose(-1, -2) * form.scale
        if bias is not None:
            x = x + (bias if bias.shape[2] == 1 else bias[:, :, rows]).float()
            x = x.masked_fill(x < MASKED_LOGIT, -math.inf)
        if keep is not None:
            x = x.masked_fill(~(keep if keep.shape[2] == 1 else keep[:, :, rows]), -math.inf)
        if form.causal:
            at = torch.arange(tokens, device=x.device)[rows].unsqueeze(1)
            x = x.masked_fill(torch.arange(x.shape[3], device=x.device) > at, -math.inf)
        return LogitRows(
            queries=self.q[:LOGIT_ITEMS, :, rows],
            logits=x,
            length=length if length.shape[2] == 1 else length[:, :, rows],
            counts=None if self.rows is None else self.rows[:LOGIT_ITEMS, :, rows],
        )


@dataclass
class MapSample:
    """Some rows of the logits that a softmax had where it alone is exchanged.

    Attributes:
        logits: ``[B, H, m, S]``.
        keep: ``[B, 1|H, m, S]``, a causal mask included.
        rows: ``[B, 1, m, 1]``, which rows are no padding; None: all are none.
    """

    logits: Tensor
    keep: Tensor
    rows: Tensor | None

    @classmethod
    def of(
        cls, logits: Tensor, keep: Tensor | None, causal: bool, same_tokens: bool, room: int
    ) -> MapSample:
        """About ``room`` of the logits ``[B, H, T, S]``, with the mask that broadcasts to them."""
        t, keys = logits.shape[2:]
        step = max(math.ceil(t / SHIFT_ROWS), 1)
        queries = torch.arange(0, t, step, device=logits.device)
        items = max(room // max(logits.shape[1] * len(queries) * keys, 1), 1)
        mask, rows = _with_four_axes(keep, items), None
        if mask is None:
            mask = torch.ones((1, 1, 1, keys), dtype=torch.bool, device=logits.device)
        elif same_tokens and mask.shape[1:] == (1, 1, t):
            rows = mask.transpose(-1, -2)[:, :, queries]
        mask = mask[:, :, queries] if mask.shape[2] > 1 else mask
        mask = mask.expand(-1, -1, len(queries), keys)
        if causal:
            mask = mask & (torch.arange(keys, device=logits.device) <= queries.unsqueeze(1))
        return cls(logits[:items, :, queries].detach(), mask.clone(), rows)

    @property
    def out(self) -> Tensor:
        """The weights that softmax gives."""
        out: Tensor = forms.SoftmaxWeights()(self.logits)
        return out

    def run(self, form: Pointwise | Hydra) -> Tensor:
        """A form's weights of the same logits; a causal mask is part of ``keep`` here."""
        out: Tensor = with_causal(form, False)(self.logits, self.keep)
        return out

    def logit_rows(self, form: Pointwise) -> LogitRows:
        """All rows at once; their queries are not known."""
        x = self.logits.float()
        x = x.masked_fill(~self.keep | (x < MASKED_LOGIT), -math.inf)
        length = with_causal(form, False).row_lengths(x, x.transpose(2, 3), self.keep)
        return LogitRows(x.new_empty((*x.shape[:3], 0)), x, length, self.rows)


def with_causal(form: Form, causal: bool | None) -> Form:
    """A form as a graph with a causal mask, or without one, has it; parameters are shared."""
    if causal is None or form.causal == causal:
        return form
    form = copy.copy(form)
    form.causal = causal
    return form


def _with_four_axes(x: Tensor | None, items: int = LOGIT_ITEMS) -> Tensor | None:
    """A bias or mask with all four axes, of the first few items."""
    if x is None:
        return None
    return x.view((1,) * (4 - x.dim()) + x.shape)[:items]
