"""The items of batches by their content, to tell whether two sets have one in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from attnpass.batch import Batch
from attnpass.fingerprint.values import content_digest
from attnpass.torch_internals import pytree


def batched_leaves(batch: Batch, count: int) -> set[int]:
    """Which leaves of a batch are tensors with ``count`` rows: one for each item."""
    return {i for i, x in enumerate(pytree.tree_leaves(batch)) if _rows(x) == count}


def item_digests(batch: Batch, leaves: Collection[int]) -> list[str]:
    """One digest for each item, of its rows of some ``leaves``; of items that tell something.

    Rows of numbers end, or begin, where a mask of their shape says so. An item whose rows are one
    number each, as padding is, tells nothing. Where the leaves have no common number of rows, the
    batch is one item, and all of it counts.
    """
    every = pytree.tree_leaves(batch)
    found = [every[i] for i in sorted(leaves) if i < len(every)]
    counts = {_rows(x) for x in found}
    if len(counts) != 1 or None in counts:
        tensors = [x for x in every if _rows(x) is not None]
        return [content_digest(tensors)] if _tells(tensors) else []
    masks = [x for x in found if _is_padding(x)]
    items = ([_unpadded(x, masks, i) for x in found] for i in range(counts.pop() or 0))
    return [content_digest(rows) for rows in items if _tells(rows)]


def _rows(x: object) -> int | None:
    """The length of a plain tensor's first axis."""
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.is_nested or x.is_meta:
        return None
    return x.shape[0] if x.dim() else None


def _tells(rows: Iterable[Tensor]) -> bool:
    return any(bool((x != x.flatten()[0]).any()) for x in rows if x.numel() > 1)


def _is_padding(x: Tensor) -> bool:
    """Whether every row is a run of ones before or behind a run of zeros."""
    if x.dim() != 2 or x.is_floating_point() or x.is_complex():
        return False
    steps = x.long().diff(dim=1)
    return bool(((x == 0) | (x == 1)).all()) and bool(((steps != 0).sum(1) <= 1).all())


def _unpadded(x: Tensor, masks: list[Tensor], i: int) -> Tensor:
    """A row without what is padding by a mask of its shape."""
    if x.is_floating_point() or x.is_complex():
        return x[i]
    for mask in masks:
        if mask.shape == x.shape:
            return x[i][mask[i].bool()]
    return x[i]
