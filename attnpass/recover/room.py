"""Batches in parts that memory has room for: micro-batches, whose gradients are added up.

Where the memory that is free does not hold what one forward pass keeps for its gradients, a batch
is learned from in parts; where it does not hold that of one item either, parts of the forward pass
are computed a second time for the gradients (activation checkpointing, 1604.06174).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from attnpass.batch import Batch, items, parts
from attnpass.memory import MemoryIsShortError, free_bytes, kept_at_most
from attnpass.torch_internals import pytree

T = TypeVar("T")

SHARE = 0.7
"""Share of the free memory that may be kept for gradients; the rest is for what comes and goes."""


class Room:
    """How many items are learned from at once, and whether activations are computed twice.

    A batch is tried as a whole first: no forward pass is made for a measurement alone. One that
    keeps too much is ended and tried again in halves.

    Args:
        device: that the model is on. reserved: bytes that training takes beside activations.
        most: items of a part at most; None: as many as memory has room for.
        recompute: makes the forward pass keep less; None where it cannot.

    Attributes:
        most: items of a part at most, as far as is known.
        fits: elements of the largest part that was seen to fit.
    """

    def __init__(
        self,
        device: torch.device,
        reserved: int,
        most: int | None,
        recompute: Callable[[], None] | None = None,
    ) -> None:
        self.device, self.reserved, self.most, self.fixed = device, reserved, most, most
        self.recompute, self.fits = recompute, 0

    def learn(self, batch: Batch, step: Callable[[Batch], T]) -> Iterator[tuple[float, T]]:
        """What ``step`` returns for every part of a batch, with the part's share of the items.

        ``step`` is called again, with less, where memory is short.
        """
        whole, rest = max(items(batch), 1), self._parts(batch)
        while rest:
            part = rest.pop(0)
            size, count = _elements(part), max(items(part), 1)
            try:
                with self._watch(size):
                    result = step(part)
            except MemoryIsShortError:
                self._give_way(count)
                rest = [x for y in (part, *rest) for x in self._parts(y)]
                continue
            self.fits = max(self.fits, size)
            yield count / whole, result

    def _parts(self, batch: Batch) -> list[Batch]:
        return [*parts(batch, self.most)] if self.most else [batch]

    def _watch(self, size: int) -> AbstractContextManager[None]:
        """Ends a forward pass that keeps too much, where none as large was made yet."""
        nothing_left = self.most == 1 and self.recompute is None
        if self.fixed or size <= self.fits or nothing_left:
            return nullcontext()
        return kept_at_most(int(SHARE * free_bytes(self.device)) - self.reserved)

    def _give_way(self, count: int) -> None:
        """Take half of the items, or keep less where there is one item."""
        self.most = (count + 1) // 2
        how = f"takes {self.most} items at a time" if self.most > 1 else "takes one at a time"
        if count == 1 and self.recompute is not None:
            self.recompute()
            self.recompute, how = None, "computes activations twice"
        warnings.warn(f"memory is short: distillation {how}", stacklevel=2)


def _elements(batch: Batch) -> int:
    """Elements of the largest tensor of a batch."""
    leaves = pytree.tree_leaves(batch)
    return max((x.numel() for x in leaves if isinstance(x, Tensor)), default=0)
